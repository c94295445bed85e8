package auditlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Whatever one line of the file becomes, verifying ends, and a file that lost an
// entry of ours is never called intact.
func TestVerify_AnyLineLost(t *testing.T) {
	t.Parallel()
	d := three(t)
	for i := range d.lines {
		lines := slices.Delete(slices.Clone(d.lines), i, i+1)
		ours := strings.Contains(d.lines[i], wire.EventsKey) && strings.Contains(d.lines[i], `"type":"response"`)
		require.Equal(t, !ours, d.verify(lines).Intact(), "line %d", i+1)
	}
}

// Random damage to bytes of events never passes.
func TestVerify_AnyByteAltered(t *testing.T) {
	t.Parallel()
	d := three(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		i := random.IntN(len(d.lines))
		if !strings.Contains(d.lines[i], wire.EventsKey) || !strings.Contains(d.lines[i], `"type":"response"`) {
			continue
		}
		line := []byte(d.lines[i])
		from := bytes.Index(line, []byte(`{\"v\"`))
		to := bytes.LastIndex(line, []byte(`\"}"`))
		at := from + random.IntN(to-from)
		if line[at] == '\\' || line[at] == '"' {
			continue
		}
		line[at] ^= 1 << random.IntN(3)
		if line[at] == '\\' || line[at] == '"' || line[at] < ' ' {
			continue
		}
		lines := slices.Clone(d.lines)
		lines[i] = string(line)
		require.False(t, d.verify(lines).Intact(), "%s\n%s", d.lines[i], line)
	}
}

// The reader never panics, whatever stands in a file, and bounds what it reports.
func FuzzVerify(f *testing.F) {
	d := three(&testing.T{})
	f.Add(strings.Join(d.lines, "\n"), 3, byte(' '))
	f.Add(`{"request":{"data":{"dbops_events_v1":null}}}`, 0, byte('x'))
	f.Fuzz(func(t *testing.T, text string, at int, b byte) {
		content := []byte(text)
		if at >= 0 && at < len(content) {
			content[at] = b
		}
		report, err := Verify(context.Background(), d.chains, []Input{input("f", strings.Split(string(content), "\n"))}, VerifyOptions{MaxProblems: 50})
		if err != nil || len(report.Problems) > 50 {
			t.Fatal(err, len(report.Problems))
		}
	})
}

// endless is a file of any size that is made while it is read.
type endless struct {
	d     *device
	left  int
	ready bytes.Buffer
	peak  uint64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.ready.Len() == 0 {
		if e.left == 0 {
			return 0, io.EOF
		}
		if e.left--; e.left%250 == 0 {
			e.peak = max(e.peak, heap())
		}
		e.d.lines = nil
		e.d.batch("a", 20)
		for _, line := range e.d.lines {
			e.d.bytes += len(line)
			e.ready.WriteString(line + "\n")
		}
	}
	return e.ready.Read(p)
}

func (*endless) Close() error { return nil }

// A file is streamed: what is remembered does not grow with it.
func TestVerify_BoundedMemory(t *testing.T) {
	d := newDevice(t)
	file := &endless{d: d, left: 2000} // more than 30 MB
	before := heap()
	in := Input{Name: "big", Open: func() (io.ReadCloser, error) { return file, nil }}
	report, err := Verify(context.Background(), wire.Chains{}, []Input{in}, VerifyOptions{})
	require.NoError(t, err)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Greater(t, d.bytes, 30<<20)
	require.EqualValues(t, 40000, report.Chains[0].Events)
	require.Less(t, file.peak, before+24<<20)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A year of rotated files may be given at once: what each costs while it is open is
// small.
func TestVerify_ManyFiles(t *testing.T) {
	d := three(t)
	text := strings.Join(d.lines, "\n") + "\n"
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, err := zip.Write([]byte(strings.Repeat(" ", 3*readBytes) + "\n" + text))
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	var inputs []Input
	for range 365 {
		inputs = append(inputs, Input{Name: "old.gz", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(zipped.Bytes())), nil }})
	}
	before, peak := heap(), uint64(0)
	inputs = append(inputs, Input{Name: "new", Open: func() (io.ReadCloser, error) {
		peak = heap() // every other one is open and has been read from
		return io.NopCloser(strings.NewReader(text)), nil
	}})
	report, err := Verify(context.Background(), d.chains, inputs, VerifyOptions{})
	require.NoError(t, err)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.EqualValues(t, 12, report.Chains[0].Events)
	require.Less(t, peak, before+128<<20)
}

// A compressed file that was cut short or altered is a finding, with its place. What
// can be read of it counts, and the other files are read.
func TestVerify_CompressedFileDamaged(t *testing.T) {
	t.Parallel()
	d := three(t)
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	// So much between ours that what is lost at the end is only the last of them.
	noise := strings.Repeat(`{"type":"request"}`+"\n", 20_000)
	_, err := zip.Write([]byte(strings.Join(d.lines[:6], "\n") + "\n" + noise + strings.Join(d.lines[6:8], "\n") + "\n"))
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	whole := zipped.Bytes()
	altered := func(at int) []byte {
		content := bytes.Clone(whole)
		content[at] ^= 0xff
		return content
	}
	for name, content := range map[string][]byte{
		"only its beginning": whole[:2], "no body": whole[:10], "half": whole[:len(whole)/2], "without its sum": whole[:len(whole)-8],
		"another sum": altered(len(whole) - 7), "another method": altered(2), "more behind it": append(bytes.Clone(whole), "more"...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			zipped := Input{Name: "audit.log.1.gz", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
			inputs := []Input{input("audit.log", d.lines[8:]), zipped}
			report, err := Verify(context.Background(), d.chains, inputs, VerifyOptions{})
			require.NoError(t, err)
			require.Contains(t, kinds(report), KindDamaged, "%+v", report.Problems)
			require.Contains(t, report.Problems[0].Message, "audit.log.1.gz:")
			require.Contains(t, report.Problems[0].Message, "cut short or altered")
			require.NotZero(t, report.Files[0].Entries)

			found := 0
			_, err = Search(context.Background(), d.chains, inputs, Filter{}, func(Hit) error { found++; return nil })
			var coded *wire.Error
			require.ErrorAs(t, err, &coded, "a search of half a file is none")
			require.Contains(t, coded.Reason, "audit.log.1.gz:")
			require.Contains(t, coded.Hint, "dbops audit verify")
		})
	}
}

// A line of blanks, however long, is not the end of a file.
func TestVerify_LongBlankLine(t *testing.T) {
	t.Parallel()
	d := three(t)
	lines := slices.Insert(slices.Clone(d.lines), 4, strings.Repeat(" ", 2*readBytes))
	report := d.verify(lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.EqualValues(t, len(lines), report.Files[0].Lines)
}
