package audit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A spool is a directory of append-only segments, each a text file of lines
//
//	<crc32c of the event, 8 hex digits> <the event's exact bytes>
//
// named by the position of its first event, and a file with the position up to
// which Vault has answered. A line cut short by a crash is the last one and is
// removed; one that is broken elsewhere is damage.
const (
	segmentSuffix = ".events"
	ackedFile     = "delivered.json"
	segmentBytes  = 1 << 20
	maxLineBytes  = wire.EventBatchMaxLen
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// position is the place of one event in the chain.
type position struct {
	Epoch uint64 `json:"epoch,string"`
	Seq   uint64 `json:"seq,string"`
	Head  string `json:"head"` // hash of that event
}

func (p position) chain() wire.Chain {
	return wire.Chain{Epoch: strconv.FormatUint(p.Epoch, 10), Seq: strconv.FormatUint(p.Seq, 10), Head: p.Head}
}

func parseChain(c wire.Chain) (position, error) {
	p := position{Head: c.Head}
	for _, field := range []struct {
		text  string
		value *uint64
	}{{c.Epoch, &p.Epoch}, {c.Seq, &p.Seq}} {
		if field.text == "" {
			continue // a plugin that knows no event of ours
		}
		n, err := strconv.ParseUint(field.text, 10, 64)
		if err != nil {
			return position{}, fmt.Errorf("read chain position: %w", err)
		}
		*field.value = n
	}
	return p, nil
}

// record is one spooled event.
type record struct {
	position
	op   string
	prev string
	text string
	n    uint64    // counts records of this process; stays the same in a new epoch
	at   time.Time // when it was recorded or found
}

func (p position) after(other position) bool {
	return p.Epoch > other.Epoch || p.Epoch == other.Epoch && p.Seq > other.Seq
}

func decodeEvent(text string) (wire.Event, error) {
	var e wire.Event
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return e, fmt.Errorf("read event: %w", err)
	}
	return e, nil
}

func parseRecord(text string) (record, error) {
	e, err := decodeEvent(text)
	if err != nil {
		return record{}, err
	}
	at, err := parseChain(wire.Chain{Epoch: e.Epoch, Seq: e.Seq, Head: wire.EventHash(text)})
	if err != nil {
		return record{}, err
	}
	if at.Epoch == 0 || at.Seq == 0 || e.OpID == "" {
		return record{}, errors.New("read event: no position or operation in it")
	}
	return record{position: at, op: e.OpID, prev: e.Prev, text: text}, nil
}

func encodeLine(text string) []byte {
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.Checksum([]byte(text), castagnoli))
	line := make([]byte, 0, len(text)+10)
	line = hex.AppendEncode(line, sum[:])
	line = append(line, ' ')
	line = append(line, text...)
	return append(line, '\n')
}

// decodeLine returns the event of a line without its newline.
func decodeLine(line []byte) (string, bool) {
	if len(line) < 10 || line[8] != ' ' {
		return "", false
	}
	sum, err := hex.DecodeString(string(line[:8]))
	if err != nil || binary.BigEndian.Uint32(sum) != crc32.Checksum(line[9:], castagnoli) {
		return "", false
	}
	return string(line[9:]), true
}

// segment is one file and the last position in it.
type segment struct {
	path string
	last position
}

// spool is the directory. Its methods are not safe for concurrent use.
type spool struct {
	dir      string
	segments []segment
	file     *os.File // the last segment, open for appending; nil when a new one is due
	size     int64    // durable bytes of file
}

// loaded is what a spool held when it was opened.
type loaded struct {
	acked   *position // nil: the file is not there
	records []record  // undelivered, in order
	torn    int64     // bytes of a torn write that were cut off
	damaged bool      // records are missing between acked and records, or among them
}

func openSpool(dir string) (*spool, loaded, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, loaded{}, fmt.Errorf("make spool: %w", err)
	}
	s := &spool{dir: dir}
	var l loaded
	acked, err := s.readAcked()
	if err != nil {
		return nil, loaded{}, err
	}
	l.acked = acked
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil {
		return nil, loaded{}, fmt.Errorf("list spool: %w", err)
	}
	sort.Strings(names) // fixed width: by epoch, then sequence
	for i, name := range names {
		if err := s.readSegment(name, i == len(names)-1, &l); err != nil {
			return nil, loaded{}, err
		}
	}
	l.records = undelivered(l.records, l.acked)
	l.damaged = l.damaged || !continuous(l.acked, l.records)
	return s, l, nil
}

// undelivered leaves out what was answered before, and epochs that a newer one
// has taken the place of, see [spool.replace].
func undelivered(records []record, acked *position) []record {
	var rest []record
	for _, r := range records {
		if acked != nil && !r.after(*acked) {
			continue
		}
		if len(rest) > 0 && r.Epoch > rest[0].Epoch {
			rest = rest[:0]
		}
		rest = append(rest, r)
	}
	return rest
}

// continuous reports whether records follow each other and what was answered.
func continuous(acked *position, records []record) bool {
	for i, r := range records {
		switch {
		case i > 0:
			before := records[i-1]
			if r.Epoch != before.Epoch || r.Seq != before.Seq+1 || r.prev != before.Head {
				return false
			}
		case acked != nil && r.Epoch == acked.Epoch:
			if r.Seq != acked.Seq+1 || r.prev != acked.Head {
				return false
			}
		case acked != nil && r.Seq != 1:
			return false
		}
	}
	return true
}

func (s *spool) readSegment(path string, isLast bool, l *loaded) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open spool segment: %w", err)
	}
	defer func() { _ = file.Close() }() // synced where it was changed
	reader := bufio.NewReader(file)
	var good int64
	seg := segment{path: path}
	for {
		line, err := readLine(reader)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, errTorn) {
			return fmt.Errorf("read spool segment: %w", err)
		}
		text, ok := decodeLine(bytes.TrimSuffix(line, []byte("\n")))
		r, parseErr := parseRecord(text)
		if err != nil || !ok || parseErr != nil {
			rest, err := io.Copy(io.Discard, reader)
			if err != nil {
				return fmt.Errorf("read spool segment: %w", err)
			}
			// A write that a crash cut short is the end of the last file. Anything
			// else was whole once.
			l.torn += int64(len(line)) + rest
			l.damaged = l.damaged || !isLast
			if err := cut(file, good); err != nil {
				return err
			}
			break
		}
		good += int64(len(line))
		seg.last = r.position
		l.records = append(l.records, r)
	}
	if seg.last.Seq == 0 {
		return s.removeFile(path)
	}
	s.segments = append(s.segments, seg)
	return nil
}

var errTorn = errors.New("line without an end")

func readLine(reader *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := reader.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull) && len(line) <= maxLineBytes:
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			return line, errTorn
		default:
			return nil, err
		}
	}
}

func cut(file *os.File, size int64) error {
	if err := file.Truncate(size); err != nil {
		return fmt.Errorf("cut spool segment: %w", err)
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("sync spool segment: %w", err)
	}
	return nil
}

// append makes records durable. After an error nothing of them is in the spool,
// or the error is errBroken and the spool must not be used any more.
func (s *spool) append(records []record) error {
	if s.file == nil || s.size > segmentBytes {
		if err := s.nextSegment(records[0].position); err != nil {
			return err
		}
	}
	var content []byte
	for _, r := range records {
		content = append(content, encodeLine(r.text)...)
	}
	_, err := s.file.Write(content)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		if undo := cut(s.file, s.size); undo != nil {
			return errors.Join(errBroken, err, undo)
		}
		return fmt.Errorf("write spool: %w", err)
	}
	s.size += int64(len(content))
	s.segments[len(s.segments)-1].last = records[len(records)-1].position
	return nil
}

var errBroken = errors.New("the spool cannot be written any more")

func (s *spool) nextSegment(first position) error {
	if err := s.closeFile(); err != nil {
		return err
	}
	path := s.segmentPath(first)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make spool segment: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return errors.Join(err, file.Close(), os.Remove(path))
	}
	s.file, s.size = file, 0
	s.segments = append(s.segments, segment{path: path, last: position{Epoch: first.Epoch, Seq: first.Seq - 1}})
	return nil
}

func (s *spool) closeFile() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	if err != nil {
		return fmt.Errorf("close spool segment: %w", err)
	}
	return nil
}

// acknowledge notes that Vault has answered for everything up to p, and removes
// the segments that are through.
func (s *spool) acknowledge(p position) error {
	content, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode delivered position: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(s.dir, ackedFile), content, 0o600, renameio.WithTempDir(s.dir)); err != nil {
		return fmt.Errorf("write delivered position: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	for len(s.segments) > 0 {
		first := s.segments[0]
		through := first.last.Epoch < p.Epoch || first.last.Epoch == p.Epoch && first.last.Seq <= p.Seq
		isOpen := s.file != nil && len(s.segments) == 1
		if !through || isOpen && s.size <= segmentBytes {
			return nil // the open one is used up first: removing it on every answer would cost two syncs
		}
		if isOpen {
			if err := s.closeFile(); err != nil {
				return err
			}
		}
		if err := s.removeFile(first.path); err != nil {
			return err
		}
		s.segments = s.segments[1:]
	}
	return nil
}

// replace makes records, the undelivered ones renumbered into a new epoch, the
// only content. They appear in one file at once, and an epoch that is there
// stands for those before it, so a crash in between loses and doubles nothing.
func (s *spool) replace(acked position, records []record) error {
	old := s.segments
	if err := s.closeFile(); err != nil {
		return err
	}
	s.segments = nil
	if len(records) > 0 {
		var content []byte
		for _, r := range records {
			content = append(content, encodeLine(r.text)...)
		}
		path := s.segmentPath(records[0].position)
		if err := renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(s.dir)); err != nil {
			return fmt.Errorf("write spool segment: %w", err)
		}
		s.segments = []segment{{path: path, last: records[len(records)-1].position}}
	}
	if err := s.acknowledge(acked); err != nil {
		return err
	}
	for _, seg := range old {
		if err := s.removeFile(seg.path); err != nil {
			return err
		}
	}
	return nil
}

func (s *spool) segmentPath(first position) string {
	return filepath.Join(s.dir, fmt.Sprintf("%010d-%016d%s", first.Epoch, first.Seq, segmentSuffix))
}

// setAside keeps text that can never be delivered, for a person to look at.
func (s *spool) setAside(records []record) error {
	var content strings.Builder
	for _, r := range records {
		content.WriteString(r.text + "\n")
	}
	path := filepath.Join(s.dir, fmt.Sprintf("refused-%010d-%016d.jsonl", records[0].Epoch, records[0].Seq))
	if err := renameio.WriteFile(path, []byte(content.String()), 0o600, renameio.WithTempDir(s.dir)); err != nil {
		return fmt.Errorf("set refused events aside: %w", err)
	}
	return syncDir(s.dir)
}

func (s *spool) readAcked() (*position, error) {
	content, err := os.ReadFile(filepath.Join(s.dir, ackedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no file: nothing delivered yet, or state lost
	}
	if err != nil {
		return nil, fmt.Errorf("read delivered position: %w", err)
	}
	var p position
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, nil //nolint:nilnil,nilerr // damaged like lost: a new epoch follows
	}
	return &p, nil
}

func (s *spool) removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove spool segment: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := dir.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync directory: %w", err), dir.Close())
	}
	if err := dir.Close(); err != nil {
		return fmt.Errorf("close directory: %w", err)
	}
	return nil
}
