package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// answering is a client whose Vault answers everything with one answer.
func answering(t *testing.T, status int, body string) (*Work, *atomic.Int32, *http.Request) {
	t.Helper()
	var calls atomic.Int32
	last := &http.Request{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		*last = *r.Clone(context.Background())
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, body) // the client's matter
	}))
	t.Cleanup(server.Close)
	client, err := Dial(Config{Address: server.URL, Token: wire.NewSecret("token"), UserAgent: "dbops-agent/test"})
	require.NoError(t, err)
	return NewWork(client, "a1"), &calls, last
}

// Each way Vault can refuse becomes one code, after one request.
func TestClient_ErrorBorder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		code   wire.Code
		reason string
	}{
		"ours":             {409, `{"errors":["1 error occurred:\n\t* stale_claim: the claim is not the current one [hint=\"poll\"]\n\n"]}`, wire.CodeStaleClaim, "the claim is not the current one"},
		"ours, 5xx":        {503, `{"errors":["source_unavailable: cannot be reached"]}`, wire.CodeSourceUnavailable, "cannot be reached"},
		"token ended":      {403, `{"errors":["permission denied"]}`, wire.CodeUnavailable, "Vault refuses: permission denied"},
		"sealed":           {503, `{"errors":["Vault is sealed"]}`, wire.CodeUnavailable, "Vault answered 503: Vault is sealed"},
		"plugin died":      {500, `{"errors":["1 error occurred:\n\t* rpc error: code = Unavailable desc = error reading from server: EOF\n\n"]}`, wire.CodeUnavailable, "EOF"},
		"proxy's own page": {502, `<html>bad gateway</html>`, wire.CodeUnavailable, "bad gateway"},
		"quota":            {429, `{"errors":["request path \"x\": rate limit quota exceeded"]}`, wire.CodeUnavailable, "quota"},
		"nothing there":    {404, `{"errors":[]}`, wire.CodeNotFound, "nothing at this path"},
		"bad field":        {400, `{"errors":["no handler"]}`, wire.CodeInvalid, "no handler"},
		"not JSON":         {200, `<html>hello</html>`, wire.CodeInternal, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work, calls, _ := answering(t, c.status, c.body)
			_, err := work.Poll(context.Background(), wire.PollRequest{})
			var coded *wire.Error
			require.ErrorAs(t, err, &coded)
			require.Equal(t, c.code, coded.Code)
			require.Contains(t, coded.Reason, c.reason)
			require.EqualValues(t, 1, calls.Load(), "never repeated behind our back")
		})
	}
}

// Without an answer the code says that Vault is away; a caller who gave up gets
// the reason for that.
func TestClient_NoAnswer(t *testing.T) {
	t.Parallel()
	client, err := Dial(Config{Address: "http://127.0.0.1:1", Token: wire.NewSecret("token")})
	require.NoError(t, err)
	_, err = NewWork(client, "a1").Poll(context.Background(), wire.PollRequest{})
	require.Equal(t, wire.CodeUnavailable, CodeOf(err))

	why := errors.New("cancelled on request")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	_, err = NewWork(client, "a1").Poll(ctx, wire.PollRequest{})
	require.ErrorIs(t, err, why)
}

// A password in an answer is boxed at once and shows in no way of printing.
func TestWork_AccountBoxesPassword(t *testing.T) {
	t.Parallel()
	work, _, last := answering(t, http.StatusOK, `{"lease_id":"dbops/agents/a1/operations/clone-1/accounts/source/x","lease_duration":900,
		"data":{"endpoint":{"connection":"prod","engine":"postgres","host":"db","port":5432},"username":"u","password":"hunter2","ttl_ms":900000}}`)
	account, err := work.Account(context.Background(), "clone-1", wire.PurposeRead, wire.Source, "7")
	require.NoError(t, err)
	require.Equal(t, "hunter2", account.Password.Reveal())
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", account, account, account), "hunter2")
	require.Equal(t, int64(900_000), account.TTLMilli)
	require.Equal(t, "db", account.Endpoint.Host)
	require.Contains(t, account.LeaseID, "clone-1")
	require.Equal(t, "/v1/dbops/agents/a1/operations/clone-1/accounts/source", last.URL.Path)
	require.Equal(t, "clone-1", last.Header.Get("X-Correlation-Id"))
	require.Equal(t, "dbops-agent/test", last.Header.Get("User-Agent"))
	require.Equal(t, "token", last.Header.Get("X-Vault-Token"))
}

// Plans are cut into parts that fit, between characters, and lose nothing.
func TestPlanParts(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "x", strings.Repeat("ä", wire.PlanPartBytes), strings.Repeat("x", wire.PlanPartBytes), strings.Repeat("x€", wire.PlanPartBytes)} {
		parts := planParts(text)
		require.Equal(t, text, strings.Join(parts, ""))
		for _, part := range parts {
			require.LessOrEqual(t, len(part), wire.PlanPartBytes)
			require.Equal(t, strings.ToValidUTF8(part, ""), part)
		}
	}
}

// A hanging Vault is given up after the time of the request, as being away.
func TestClient_GivesUp(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	client, err := Dial(Config{Address: server.URL, Token: wire.NewSecret("token")})
	require.NoError(t, err)
	_, err = client.do(context.Background(), request{do: "wait", method: http.MethodGet, path: "x", timeout: 50 * time.Millisecond}, nil)
	require.Equal(t, wire.CodeUnavailable, CodeOf(err))
}
