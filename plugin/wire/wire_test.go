package wire_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
)

// Every code has a sensible row: a status a refusal may have, an exit code, and no
// retry of what cannot change by itself.
func TestCodes_TableIsTotal(t *testing.T) {
	t.Parallel()
	exits := map[int]bool{1: true, 2: true, 3: true, 10: true, 11: true, 12: true, 13: true, 14: true, 15: true, 16: true, 17: true}
	codes := wire.Codes()
	require.GreaterOrEqual(t, len(codes), 36)
	for _, c := range codes {
		info := c.Info()
		require.True(t, c.Valid(), c)
		require.NotEmpty(t, http.StatusText(info.HTTP), c)
		require.GreaterOrEqual(t, info.HTTP, 400, c)
		require.True(t, exits[info.Exit], "%s has exit code %d", c, info.Exit)
		if info.HTTP >= 500 {
			require.True(t, info.Retry, "%s: clients repeat on %d by themselves", c, info.HTTP)
		}
		if info.HTTP == 403 || info.HTTP == 400 || info.HTTP == 404 {
			require.False(t, info.Retry, c)
		}
		require.Regexp(t, `^[a-z][a-z_]*$`, string(c))
	}
	require.False(t, wire.Code("other").Valid())
	require.Equal(t, wire.CodeInternal.Info(), wire.Code("other").Info())
}

// Every state knows what may follow, every state but the first can be reached, and
// what has ended stays so.
func TestStates_TableIsTotal(t *testing.T) {
	t.Parallel()
	reached := map[wire.State]bool{wire.StateRequested: true}
	for range wire.States() {
		for _, s := range wire.States() {
			if reached[s] {
				for _, next := range s.Next() {
					reached[next] = true
				}
			}
		}
	}
	ended := map[wire.State]bool{
		wire.StateSucceeded: true, wire.StateFailed: true, wire.StateCancelled: true, wire.StateExpired: true, wire.StateDenied: true,
	}
	for _, s := range wire.States() {
		require.True(t, s.Valid(), s)
		require.True(t, reached[s], "%s cannot be reached", s)
		require.Equal(t, ended[s], s.Final(), s)
		require.False(t, s.CanBecome(s), s)
		for _, next := range s.Next() {
			require.True(t, next.Valid(), "%s → %s", s, next)
			require.True(t, s.CanBecome(next))
		}
		if !s.Final() {
			require.True(t, s.CanBecome(wire.StateFailed), "%s can fail", s)
			require.True(t, s.CanBecome(wire.StateCancelled), "%s can be cancelled", s)
		}
		// Success needs verification, whatever came before.
		require.Equal(t, s == wire.StateVerifying, s.CanBecome(wire.StateSucceeded), s)
		require.Equal(t, s == wire.StateQueued, s.CanBecome(wire.StateRunning), s)
		phase := s.ClaimPhase()
		require.Equal(t, s == wire.StatePlanning || s == wire.StateRunning || s == wire.StateVerifying, phase != "", s)
		if phase == "" {
			require.Empty(t, phase.Purposes(), "%s has no claim and so no account", s)
		}
	}
	require.False(t, wire.State("").Valid())
	require.False(t, wire.State("").Final())
	require.Equal(t, map[wire.Side]wire.Purpose{wire.Source: wire.PurposeInspect, wire.Target: wire.PurposeInspect}, wire.PhasePlanning.Purposes())
	require.Equal(t, map[wire.Side]wire.Purpose{wire.Target: wire.PurposeWrite}, wire.PhaseCleanup.Purposes())
}

func TestError_RoundTrip(t *testing.T) {
	t.Parallel()
	for _, e := range []*wire.Error{
		{Code: wire.CodeDenied, Reason: "no policy allows it"},
		{Code: wire.CodeRateLimited, Reason: "5 are the limit [really]", Policy: "dev", Rule: "max_operations_per_hour", RetryAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		{Code: wire.CodeInvalid, Reason: `field "x" [hint=`, Field: "jobs", Hint: `say "2" [or "3"]`},
	} {
		require.Equal(t, e, wire.ParseError(e.Error()))
		require.Equal(t, e, wire.ParseError("Error making API request.\n\nErrors:\n\n* 1 error occurred:\n\t* "+e.Error()+"\n\n"))
	}
	for _, text := range []string{"", "permission denied", "1 error occurred:\n\t* permission denied", "other: code", "denied:no space"} {
		require.Nil(t, wire.ParseError(text), text)
	}
}

// What Error writes, ParseError reads: the same code and, for texts that fit on a
// line, the same everything. No input makes it panic.
func FuzzError_RoundTrip(f *testing.F) {
	f.Add("reason", "field", "policy", "rule", "hint", int64(0), "denied: x [rule=\"y\"]")
	f.Add("ends with ]", "", "", "", "a \"quoted\" [hint=\"x\"]", int64(1700000000), "* internal: a [b]")
	f.Add(" [field=\"x\"]", "", "p", "", "\x00\xff", int64(-5), "invalid:  []")
	codes := wire.Codes()
	f.Fuzz(func(t *testing.T, reason, field, policy, rule, hint string, at int64, other string) {
		if parsed := wire.ParseError(other); parsed != nil && !parsed.Code.Valid() {
			t.Fatalf("%q parsed to %+v", other, parsed)
		}
		e := &wire.Error{Code: codes[uint64(at)%uint64(len(codes))], Reason: reason, Field: field, Policy: policy, Rule: rule, Hint: hint}
		if at > 0 && at < 1<<37 { // years that RFC 3339 can write
			e.RetryAt = time.Unix(at, 0).UTC()
		}
		text := e.Error()
		if strings.Contains(text, "\n") {
			t.Fatalf("more than one line: %q", text)
		}
		parsed := wire.ParseError("1 error occurred:\n\t* " + text + "\n\n")
		if parsed == nil || parsed.Code != e.Code {
			t.Fatalf("%q parsed to %+v", text, parsed)
		}
		// A reason that ends like attributes, or begins or ends with blanks, is read
		// otherwise; the code never is.
		if strings.ContainsAny(reason, "[]\n\r") || strings.TrimSpace(reason) != reason || reason == "" {
			return
		}
		for _, s := range []string{field, policy, rule, hint} {
			if strings.ToValidUTF8(s, "") != s {
				return
			}
		}
		if !reflect.DeepEqual(parsed, e) {
			t.Fatalf("%q: got %+v, want %+v", text, parsed, e)
		}
	})
}

// Reading an error takes no longer than its text is long, however hostile.
func TestParseError_LongText(t *testing.T) {
	t.Parallel()
	for _, piece := range []string{" [", ` [hint="x" `, ` [hint="`, " [=", " [a=b"} {
		start := time.Now()
		require.NotNil(t, wire.ParseError("internal: "+strings.Repeat(piece, 100_000)+"]"))
		require.Less(t, time.Since(start), 10*time.Second, piece)
	}
}

// A secret shows itself to nobody who does not ask for it by name.
func TestSecret_Redacted(t *testing.T) {
	t.Parallel()
	const value = "correct horse battery staple"
	s := wire.NewSecret(value)
	type holder struct {
		Exported wire.Secret `json:"exported"`
		hidden   wire.Secret
		Pointer  *wire.Secret
	}
	h := holder{s, s, &s}
	var out bytes.Buffer
	for _, v := range []any{s, &s, h, &h, []wire.Secret{s}, map[string]wire.Secret{"k": s}, wire.Account{Username: "u", Password: s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb, v)
		}
		content, err := json.Marshal(v)
		require.NoError(t, err)
		out.Write(content)
		for _, asJSON := range []bool{true, false} {
			hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: asJSON}).Info("message", "secret", v)
		}
	}
	fmt.Fprint(&out, h.hidden, fmt.Errorf("wrapped: %v", s))
	require.NotContains(t, out.String(), value)
	require.NotContains(t, out.String(), fmt.Sprintf("%x", value))
	require.Contains(t, out.String(), "<redacted>")

	require.Equal(t, value, s.Reveal())
	require.False(t, s.Empty())
	require.True(t, wire.Secret{}.Empty())
	require.Empty(t, wire.Secret{}.Reveal())
	require.True(t, wire.NewSecret("").Empty())
	require.Error(t, json.Unmarshal([]byte(`"<redacted>"`), new(wire.Secret)))
}

// The hash of an event is over its exact bytes, each event names the one before,
// and the bytes survive being read back.
func TestEvent_Chain(t *testing.T) {
	t.Parallel()
	prev := ""
	for seq := range 3 {
		e := wire.Event{V: 1, T: time.Unix(1700000000, 123).UTC(), Agent: "a1", Epoch: "1", Seq: fmt.Sprint(seq + 1), Detail: "<&>", Prev: prev}
		text, hash, err := e.Encode()
		require.NoError(t, err)
		require.Equal(t, wire.EventHash(text), hash)
		require.Len(t, hash, 64)
		require.NotContains(t, text, "\n")
		var back wire.Event
		require.NoError(t, json.Unmarshal([]byte(text), &back))
		again, hashAgain, err := back.Encode()
		require.NoError(t, err)
		require.Equal(t, text, again)
		require.Equal(t, hash, hashAgain)
		require.NotEqual(t, hash, wire.EventHash(text+" "))
		require.Equal(t, prev, back.Prev)
		prev = hash
	}
	require.Equal(t, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", wire.EventHash(""))
	require.Equal(t, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", wire.Digest(nil))
}

func TestServerIdentity_Same(t *testing.T) {
	t.Parallel()
	a := wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "1", Database: "shop", DatabaseID: "5", Version: "15"}
	b := a
	b.DatabaseID, b.Version, b.TLS = "9", "16", true
	require.True(t, a.Same(b))
	for _, change := range []func(*wire.ServerIdentity){
		func(i *wire.ServerIdentity) { i.Server = "2" }, func(i *wire.ServerIdentity) { i.Database = "other" },
		func(i *wire.ServerIdentity) { i.Engine = wire.EngineMySQL },
	} {
		c := a
		change(&c)
		require.False(t, a.Same(c))
	}
	require.False(t, wire.ServerIdentity{}.Same(wire.ServerIdentity{}), "what is not known is not the same")
}

func TestAgentName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "db-host-1", strings.Repeat("x", 63)} {
		require.True(t, wire.ValidAgentName(name), name)
	}
	for _, name := range []string{"", "+", "a+", "A", "a_b", "a/b", "a\n", "a b", strings.Repeat("x", 64), "é"} {
		require.False(t, wire.ValidAgentName(name), name)
	}
}

// No key under which a secret can stand is shown in clear in audit devices.
func TestAuditKeys_HoldNoSecret(t *testing.T) {
	t.Parallel()
	for _, key := range append(wire.AuditNonHMACRequestKeys(), wire.AuditNonHMACResponseKeys()...) {
		require.NotContains(t, []string{"password", "text", "data", "report", "hint", "secret", "token", "private_key"}, key)
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	m := wire.Mount("/team/dbops/")
	require.Equal(t, "team/dbops/clone/a/b", m.Request(wire.KindClone, "a", "b"))
	require.Equal(t, "team/dbops/agents/x/operations/op-1/accounts/inspect/source", m.Accounts("x", "op-1", wire.PurposeInspect, wire.Source))
	require.Equal(t, "team/dbops/agents/x/operations/op-1/accounts/target", m.Accounts("x", "op-1", wire.PurposeWrite, wire.Target))
	require.Equal(t, "sys/leases/revoke-prefix/team/dbops/agents/x/operations/op-1", m.RevokePrefix("x", "op-1"))
}
