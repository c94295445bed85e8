package command

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// An auditor sees what is weak about a real mount and its servers, as a table and
// as JSON; -fail-on decides the exit code; a requester sees nothing.
func TestPosture_ThroughVault(t *testing.T) {
	s := stack.New(t, stack.Options{WithoutAgent: true})
	_, auditor := s.Person("ada", "dbops-auditor")
	t.Setenv("VAULT_ADDR", s.Vault.Address)
	run := func(token string, arguments ...string) (string, string, int) {
		t.Setenv("VAULT_TOKEN", token)
		var out, errs bytes.Buffer
		code := runCLI(append([]string{"posture"}, arguments...), &console{stdout: &out, stderr: &errs, version: "test", signals: make(chan os.Signal)})
		return out.String(), errs.String(), code
	}

	text, errs, code := run(auditor)
	require.Equal(t, 0, code, errs)
	require.Regexp(t, `(?m)^SEVERITY +SUBJECT +FINDING +SEEN +REMEDY$`, text)
	require.Regexp(t, `(?m)^high +connection prod +tls_off +the session is not encrypted +connect with TLS`, text)
	require.Regexp(t, `(?m)^info +mount +not_checked +could not be checked: audit devices`, text)
	require.Regexp(t, `(?m)^Score: \d+ of 100 \(.*tls_off -10`, text)

	text, errs, code = run(auditor, "-connection=staging", "-fresh", "-format=json", "-fail-on=high")
	require.Equal(t, wire.CodeCheckFailed.Info().Exit, code)
	require.Contains(t, errs, "findings of severity high or above")
	var posture wire.Posture
	require.NoError(t, json.Unmarshal([]byte(text), &posture))
	require.NotEmpty(t, posture.Findings)
	for _, f := range posture.Findings {
		require.Equal(t, wire.Subject{Kind: wire.SubjectConnection, Name: "staging"}, f.Subject)
	}
	require.Equal(t, "staging", posture.Looks[0].Connection)

	_, _, code = run(auditor, "-connection=staging", "-fail-on=critical")
	require.Equal(t, 0, code)
	_, errs, code = run(auditor, "-connection=nowhere")
	require.Equal(t, wire.CodeNotFound.Info().Exit, code, errs)
	_, errs, code = run(s.RequesterToken)
	require.Equal(t, wire.CodeDenied.Info().Exit, code, errs)
}
