package wire

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
)

// What looks personal is replaced, whatever stands around it.
func TestRedactPersonal_Table(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"refresh for bob@example.com":                        "refresh for [email]",
		"<bob.o'neil+x@mail.example.co.uk>, urgent":          "<bob.o'[email]>, urgent",
		"asked by Bob (bob@example.com).":                    "asked by Bob ([email]).",
		"a@example.com,b@example.org":                        "[email],[email]",
		"card 4111111111111111 declined":                     "card [card] declined",
		"4111 1111 1111 1111":                                "[card]",
		"5500-0000-0000-0004.":                               "[card].",
		"amex 3400 000000 00009":                             "amex [card]",
		"amex 340000000000009":                               "amex [card]",
		"call +49 151 23456789 now":                          "call [phone] now",
		"call +4915123456789":                                "call [phone]",
		"+1 (555) 234-5678":                                  "[phone]",
		"(555) 234-5678":                                     "[phone]",
		"555-234-5678":                                       "[phone]",
		"tel. 030 12345678":                                  "tel. [phone]",
		"0171/1234567":                                       "[phone]",
		"01 23 45 67 89":                                     "[phone]",
		"ssn 078-05-1120":                                    "ssn [national-id]",
		"nino AB 12 34 56 C":                                 "nino [national-id]",
		"nino AB123456C":                                     "nino [national-id]",
		"dni 12345678Z":                                      "dni [national-id]",
		"nie X1234567L":                                      "nie [national-id]",
		"cf RSSMRA85T10A562S":                                "cf [national-id]",
		"nir 1 85 05 78 006 084 36":                          "nir [national-id]",
		`{"error":"no row for bob@example.com","n":1}`:       `{"error":"no row for [email]","n":1}`,
		`key (email)=(bob@example.com) already exists`:       `key (email)=([email]) already exists`,
		`{"e":"first\nbob@example.com\t078-05-1120"}`:        `{"e":"first\n[email]\t[national-id]"}`,
		"4111111111111112":                                   "4111111111111112", // check digit
		"000-12-3456 666-12-3456 900-12-3456":                "000-12-3456 666-12-3456 900-12-3456",
		"12345678A":                                          "12345678A", // check letter
		"rows 4111111111111 bytes 123456789012":              "rows 4111111111111 bytes 123456789012",
		`{"bytes":4111111111111111,"rows":5500000000000004}`: `{"bytes":4111111111111111,"rows":5500000000000004}`,
		"7312345678901234567":                                "7312345678901234567", // system_identifier
	} {
		require.Equal(t, want, RedactPersonal(text), text)
		require.Equal(t, want, RedactPersonal(want), "twice")
	}
}

// unpersonal is one of each kind of value our events, logs and errors hold.
func unpersonal(i int) []string {
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	sum := sha256.Sum256(random)
	digest := hex.EncodeToString(sum[:])
	at := time.Unix(1700000000+int64(i)*86399, int64(i)*7919).UTC()
	const crockford = "0123456789abcdefghjkmnpqrstvwxyz"
	ulid := make([]byte, 26)
	for n := range ulid {
		ulid[n] = crockford[random[n]&31]
	}
	uuid := digest[:8] + "-" + digest[8:12] + "-" + digest[12:16] + "-" + digest[16:20] + "-" + digest[20:32]
	return []string{
		digest, "sha256:" + digest, digest[:12], digest[:32], strings.ToUpper(digest), "op-" + string(ulid), strings.ToUpper(string(ulid)), uuid,
		at.Format(time.RFC3339Nano), at.Format(time.RFC3339), at.In(time.FixedZone("", 19800)).Format(time.RFC3339), at.Format(time.DateTime),
		at.Format("2006-01-02 15:04:05.000-07"), at.Format("2006-01-02T15:04:05.000-0700"), at.Format(time.DateOnly), at.Format("02.01.2006"),
		strconv.FormatInt(at.UnixNano(), 10), strconv.FormatInt(at.UnixMilli(), 10), strconv.Itoa(i * 104729 * 1009), strconv.Itoa(i),
		fmt.Sprintf("%d.%d.%d.%d:%d", 10+i%200, i%256, i*7%256, i*13%256, 1024+i%60000), fmt.Sprintf("v1.%d.%d", i, i*3), fmt.Sprintf("%dms", i*1009),
		"v-root-dbops-ab12cd34-" + string(ulid[:20]), "dbops/agents/host1/operations/op-" + string(ulid) + "/events", "SQLSTATE 42P01", "0/1A2B3C4D",
		"postgres@sha256:" + digest, base64.StdEncoding.EncodeToString(random),
		fmt.Sprintf("epoch %d, seq %d", i%9, i*997), fmt.Sprintf("public.table_%d", i), "[fe80::1ff:fe23:4567:890a]:5432",
	}
}

// Ids, digests, time stamps, addresses, counts and versions stay as they are,
// alone and within a log line.
func TestRedactPersonal_LeavesTheRestAlone(t *testing.T) {
	t.Parallel()
	for i := range 300 {
		for _, value := range unpersonal(i) {
			require.Equal(t, value, RedactPersonal(value))
			line := "worker: step done value=" + value + ` other="` + value + `" (` + value + ")"
			require.Equal(t, line, RedactPersonal(line))
		}
	}
}

// An event as it is recorded holds nothing that is taken for personal.
func TestRedactPersonal_Events(t *testing.T) {
	t.Parallel()
	for i := range 200 {
		values := unpersonal(i)
		e := Event{
			V: 1, T: time.Unix(1700000000, int64(i)).UTC(), Agent: "host1", Epoch: "1", Seq: strconv.Itoa(i), OpID: values[5], Operation: KindClone,
			Source: "prod", Target: "staging", User: User{EntityID: values[7], Name: "alice"}, EventType: EventTableVerified,
			Severity: SeverityInfo, Outcome: OutcomeSuccess, Phase: StepVerify, Object: "public.customer", Rows: values[18],
			Bytes: values[18], DurMS: "1", Detail: values[0], Prev: values[0],
		}
		text, _, err := e.Encode()
		require.NoError(t, err)
		require.Equal(t, text, RedactPersonal(text))
	}
}

// Whatever the text, redacting never panics, is stable, leaves valid JSON valid,
// and leaves no e-mail address that stands alone.
func FuzzRedactPersonal(f *testing.F) {
	for _, seed := range []string{"bob@example.com", "4111 1111 1111 1111", "+49 151 23456789", "078-05-1120", "", "@", `{"a":"b@c.de"}`, "é1@b.co"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		once := RedactPersonal(text)
		if twice := RedactPersonal(once); twice != once {
			t.Fatalf("%q becomes %q, then %q", text, once, twice)
		}
		if json.Valid([]byte(text)) && !json.Valid([]byte(once)) {
			t.Fatalf("%q becomes invalid: %q", text, once)
		}
		if around := RedactPersonal("(" + "jane.doe@example.org" + ") " + text); strings.Contains(around, "jane.doe@example.org") {
			t.Fatalf("%q keeps an address", around)
		}
	})
}

// A logger that writes through the writer redacts messages and values, in text
// and in JSON, and its JSON stays JSON.
func TestRedactingWriter_Logger(t *testing.T) {
	t.Parallel()
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		log := hclog.New(&hclog.LoggerOptions{Output: NewRedactingWriter(&out), JSONFormat: asJSON})
		log.Error("no row for bob@example.com", "error", "card 4111 1111 1111 1111", "rows", 4111111111111111, "who", []string{"+49 151 23456789"})
		require.NotContains(t, out.String(), "bob@")
		require.NotContains(t, out.String(), "4111 1111")
		require.NotContains(t, out.String(), "23456789")
		require.Equal(t, asJSON, json.Valid(out.Bytes()), out.String())
		require.True(t, !asJSON || strings.Contains(out.String(), `"rows":4111111111111111`), out.String())
	}
}

// The time grows with the text, not with its square: what a person writes is
// bounded before, but a log line may be long.
func TestRedactPersonal_LongText(t *testing.T) {
	t.Parallel()
	const long = 1 << 20
	for name, text := range map[string]string{
		"dots before":       strings.Repeat(".", long) + "@example.com=",
		"after a sign":      "#" + strings.Repeat(".", long) + "@example.com",
		"many addresses":    strings.Repeat("a@b.cd=", long/8),
		"one within others": strings.Repeat("a.", long/2) + "@b.c@d.ef",
	} {
		done := make(chan string, 1)
		go func() { done <- RedactPersonal(text) }()
		select {
		case got := <-done:
			require.Equal(t, text, got, name)
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: it does not end", name)
		}
	}
	// What begins after a sign that is part of an address is still one.
	require.Equal(t, "#x%"+RedactedEmail, RedactPersonal("#x%jane@example.com"))
	require.Equal(t, "a@b.cd= "+RedactedEmail, RedactPersonal("a@b.cd= jane@example.com"))
}
