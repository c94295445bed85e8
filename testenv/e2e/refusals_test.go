package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// refused checks that err is a refusal of Vault with the status and code it must
// have, and returns it for a look at rule and reason.
func refused(t *testing.T, err error, code wire.Code) *wire.Error {
	t.Helper()
	var answer *api.ResponseError
	require.ErrorAs(t, err, &answer)
	parsed := wire.ParseError(strings.Join(answer.Errors, "\n"))
	require.NotNil(t, parsed, "no code in %v", answer.Errors)
	require.Equal(t, code, parsed.Code, "%v", answer.Errors)
	require.Equal(t, code.Info().HTTP, answer.StatusCode, "%v", answer.Errors)
	require.Less(t, answer.StatusCode, 500)
	require.NotEmpty(t, parsed.Reason)
	return parsed
}

// An operation that may not be is refused at once, with a 4xx, a code, the rule
// and a reason that stands in clear in the audit device.
func TestRefusals_Request(t *testing.T) {
	t.Parallel()
	s := stack.New(t, stack.Options{WithoutAgent: true, Policy: map[string]any{"max_operations_per_hour": 5}})
	ask := func(client *api.Client, source, target string, data map[string]any) error {
		_, err := s.TryAsk(client, source, target, data)
		return err
	}

	t.Run("unknown connection", func(t *testing.T) {
		err := refused(t, ask(s.Requester, "nowhere", stack.TargetName, nil), wire.CodeNotFound)
		require.Contains(t, err.Reason, "nowhere")
	})
	t.Run("root without an identity", func(t *testing.T) {
		refused(t, ask(s.Vault.Client, stack.SourceName, stack.TargetName, nil), wire.CodeNoIdentity)
	})
	t.Run("no policy", func(t *testing.T) {
		s := stack.New(t, stack.Options{WithoutAgent: true, SourceServer: s.Source, TargetServer: s.Target})
		_, err := s.Vault.Client.Logical().Delete(string(s.Mount()) + "/policies/everyone")
		require.NoError(t, err)
		err = func() error { _, err := s.TryAsk(s.Requester, stack.SourceName, stack.TargetName, nil); return err }()
		refused(t, err, wire.CodeDenied)
	})
	t.Run("operation not allowed", func(t *testing.T) {
		s := stack.New(t, stack.Options{
			WithoutAgent: true, SourceServer: s.Source, TargetServer: s.Target,
			Policy: map[string]any{"allowed_operations": "backup"},
		})
		_, err := s.TryAsk(s.Requester, stack.SourceName, stack.TargetName, nil)
		e := refused(t, err, wire.CodeDenied)
		require.Equal(t, "allowed_operations", e.Rule)
		require.Equal(t, "everyone", e.Policy)
	})
	t.Run("same database under one name", func(t *testing.T) {
		refused(t, ask(s.Requester, stack.SourceName, stack.SourceName, nil), wire.CodeSameDatabase)
	})
	t.Run("same database under two names", func(t *testing.T) {
		s.Connect("prod-again", s.Source, "postgres", stack.Database)
		refused(t, ask(s.Requester, stack.SourceName, "prod-again", nil), wire.CodeSameDatabase)
	})
	t.Run("protected target", func(t *testing.T) {
		s.Connect("guarded", s.Target, "postgres", "guarded")
		s.Write("connections/guarded", map[string]any{"protected": true})
		refused(t, ask(s.Requester, stack.SourceName, "guarded", nil), wire.CodeProtectedTarget)
	})
	t.Run("field and way out", func(t *testing.T) {
		err := refused(t, ask(s.Requester, stack.SourceName, stack.TargetName, map[string]any{"jobs": "many"}), wire.CodeInvalid)
		require.Equal(t, "jobs", err.Field)
	})
	t.Run("repeated request_id", func(t *testing.T) {
		first, err := s.TryAsk(s.Requester, stack.SourceName, stack.TargetName, map[string]any{"request_id": "r1", "jobs": "2"})
		require.NoError(t, err)
		again, err := s.TryAsk(s.Requester, stack.SourceName, stack.TargetName, map[string]any{"request_id": "r1", "jobs": "2"})
		require.NoError(t, err)
		require.Equal(t, first, again)
		refused(t, ask(s.Requester, stack.SourceName, stack.TargetName, map[string]any{"request_id": "r1", "jobs": "3"}), wire.CodeRequestIDReused)
	})
	t.Run("sixth in an hour at a limit of five", func(t *testing.T) {
		for n := 2; n <= 5; n++ { // the one of the repeated request_id counts once
			require.NoError(t, ask(s.Requester, stack.SourceName, stack.TargetName, nil), "operation %d", n)
		}
		err := ask(s.Requester, stack.SourceName, stack.TargetName, nil)
		e := refused(t, err, wire.CodeRateLimited)
		require.Equal(t, "max_operations_per_hour", e.Rule)
		require.False(t, e.RetryAt.IsZero())
	})
	t.Run("somebody else's operation is not there", func(t *testing.T) {
		bob, _ := s.Person("bob", "dbops-requester")
		list, err := s.Vault.Client.Logical().List(s.Mount().AllOperations())
		require.NoError(t, err)
		require.NotNil(t, list)
		keys, ok := list.Data["keys"].([]any)
		require.True(t, ok)
		require.Len(t, keys, 5)
		id := fmt.Sprint(keys[0])
		found, err := bob.Logical().Read(s.Mount().Operation(id))
		if err != nil {
			var answer *api.ResponseError
			require.True(t, errors.As(err, &answer))
			require.Equal(t, 404, answer.StatusCode)
		}
		require.Nil(t, found)
		own, err := s.Requester.Logical().Read(s.Mount().Operation(id))
		require.NoError(t, err)
		require.NotNil(t, own)
	})
	t.Run("in clear in the audit file", func(t *testing.T) {
		var clear bool
		for _, entry := range s.Vault.AuditEntries() {
			clear = clear || strings.Contains(string(entry), "max_operations_per_hour") && strings.Contains(string(entry), `"error"`)
		}
		require.True(t, clear, "no refusal with its rule in the audit file")
	})
}
