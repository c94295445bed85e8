package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// opensslVerifies asks OpenSSL, which knows nothing of DSSE, whether an envelope is
// signed with the key. What is signed is put together here by the text of DSSE's
// protocol, from the two base64 texts in the file.
func opensslVerifies(t *testing.T, s *stack.Stack, envelope []byte, publicKey string) string {
	t.Helper()
	var e struct {
		PayloadType, Payload string
		Signatures           []struct{ KeyID, Sig string }
	}
	require.NoError(t, json.Unmarshal(envelope, &e))
	require.Len(t, e.Signatures, 1)
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	require.NoError(t, err)
	message := fmt.Sprintf("DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(payload), payload)
	const script = `set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
base64 -d <<<"$1" >"$d/message"; base64 -d <<<"$2" >"$d/signature"; printf %s "$3" >"$d/key.pem"
openssl pkey -pubin -in "$d/key.pem" -outform DER | sha256sum | cut -c1-64
openssl pkeyutl -verify -rawin -pubin -inkey "$d/key.pem" -in "$d/message" -sigfile "$d/signature" 2>&1 || true`
	return s.Source.Run("bash", "-c", script, "bash", base64.StdEncoding.EncodeToString([]byte(message)), e.Signatures[0].Sig, publicKey)
}

// The receipt of a real clone: Vault's word and the agent's apart, verified by the
// command line without Vault and by OpenSSL, still after the key was rotated, and
// by nobody when anything in it has changed.
func TestReceipt_OfARealClone(t *testing.T) {
	t.Parallel()
	s := stack.New(t, stack.Options{})
	s.Source.Exec(stack.Database, "CREATE TABLE a (n int PRIMARY KEY)", "INSERT INTO a SELECT generate_series(1, 1000)", "CREATE TABLE b (n int)")
	began := time.Now().Add(-time.Minute)
	op := s.Succeed(map[string]any{"reason": "ticket 4711"}, time.Minute)

	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	out, errs, status := s.CLI(s.RequesterToken, "receipt", op.ID, "-out="+path("receipt.json"))
	require.Zero(t, status, errs)
	require.Empty(t, out)
	readKeys := func(file string) string {
		secret, err := s.Requester.Logical().Read("dbops/keys")
		require.NoError(t, err, "a requester may read the public keys")
		text, ok := secret.Data["pem"].(string)
		require.True(t, ok)
		require.NoError(t, os.WriteFile(path(file), []byte(text), 0o600))
		return text
	}
	publicKey := readKeys("keys.pem")
	envelope, err := os.ReadFile(path("receipt.json"))
	require.NoError(t, err)

	// Offline: the command gets neither address nor token that work.
	verify := func(receipt, keys string, more ...string) (string, int) {
		out, errs, status := s.CLI("no token", append([]string{"receipt", "verify", "-keys=" + path(keys), path(receipt)}, more...)...)
		return out + errs, status
	}
	text, status := verify("receipt.json", "keys.pem")
	require.Zero(t, status, text)
	attested, reported, found := strings.Cut(text, "REPORTED BY THE AGENT")
	require.True(t, found, text)
	for _, want := range []string{"ATTESTED", op.ID, "ticket 4711", op.PlanDigest, "read on prod", "write on staging", "inspect on prod", "running", "succeeded by the agent"} {
		require.Contains(t, attested, want)
	}
	for _, want := range []string{"1000", "network none", "Root of tables", "Audit devices", op.Result.ReportDigest} {
		require.Contains(t, reported, want)
		require.NotContains(t, attested, "Root of tables")
	}

	text, status = verify("receipt.json", "keys.pem", "-format=json")
	require.Zero(t, status, text)
	var verified struct {
		KeyID string `json:"key_id"`
		wire.Receipt
	}
	require.NoError(t, json.Unmarshal([]byte(text), &verified))
	a := verified.Attested
	require.Len(t, a.Claims, 2)
	require.Equal(t, stack.AgentName, a.Claims[1].Agent)
	require.Len(t, a.Accounts, 4, "two that inspected and two that copied")
	leased := map[string]bool{}
	for _, e := range s.AuditedEvents(op.ID) {
		if e.EventType == wire.EventAccessGranted {
			leased[e.Object] = true
		}
	}
	for _, account := range a.Accounts {
		require.True(t, leased[account.Username], "%s stands in the audit device too", account.Username)
		require.True(t, account.IssuedAt.After(began) && account.EndedAt.After(account.IssuedAt), "%+v", account)
		require.False(t, account.Unconfirmed)
	}
	require.Len(t, verified.ReportedByAgent.TablesRoot, len("sha256:")+64)
	require.Equal(t, "none", verified.ReportedByAgent.Sandbox.Container.Network)
	require.True(t, verified.ReportedByAgent.Sandbox.Container.ReadOnlyRoot)

	// The report that Vault keeps is the one the receipt speaks of, table by table.
	secret, err := s.Requester.Logical().Read("dbops/operations/" + op.ID + "/report")
	require.NoError(t, err)
	report, ok := secret.Data["text"].(string)
	require.True(t, ok)
	require.NoError(t, os.WriteFile(path("report.json"), []byte(report), 0o600))
	text, status = verify("receipt.json", "keys.pem", "-report="+path("report.json"))
	require.Zero(t, status, text)
	require.NoError(t, os.WriteFile(path("report.json"), []byte(strings.Replace(report, `"rows":1000`, `"rows":1001`, 1)), 0o600))
	text, status = verify("receipt.json", "keys.pem", "-report="+path("report.json"))
	require.Equal(t, wire.CodeReceiptInvalid.Info().Exit, status, text)

	answer := opensslVerifies(t, s, envelope, publicKey)
	require.Contains(t, answer, "Signature Verified Successfully")
	require.Contains(t, answer, strings.TrimPrefix(verified.KeyID, "sha256:"), "the key's id is the digest of its DER form")
	altered := strings.Replace(string(envelope), `"payload":"ey`, `"payload":"eX`, 1)
	require.NotContains(t, opensslVerifies(t, s, []byte(altered), publicKey), "Signature Verified Successfully")
	require.NoError(t, os.WriteFile(path("altered.json"), []byte(altered), 0o600))
	text, status = verify("altered.json", "keys.pem")
	require.Equal(t, wire.CodeReceiptInvalid.Info().Exit, status, text)
	require.Contains(t, text, "receipt_invalid")

	// A new key: old receipts stay good, and a file with the new key alone is not
	// enough for them.
	_, err = s.Requester.Logical().Write("dbops/keys/rotate", nil)
	require.Error(t, err, "a requester may not rotate keys")
	operator, _ := s.Person("olga", "dbops-operator")
	rotated, err := operator.Logical().Write("dbops/keys/rotate", nil)
	require.NoError(t, err)
	require.NotEqual(t, verified.KeyID, rotated.Data["current"])
	both := readKeys("both.pem")
	text, status = verify("receipt.json", "both.pem")
	require.Zero(t, status, text)
	require.NoError(t, os.WriteFile(path("new.pem"), []byte(strings.Replace(both, publicKey, "", 1)), 0o600))
	text, status = verify("receipt.json", "new.pem")
	require.Equal(t, wire.CodeReceiptInvalid.Info().Exit, status, text)
	require.Contains(t, text, "none of the keys")
	_, auditor := s.Person("ada", "dbops-auditor")
	next := s.Succeed(nil, time.Minute)
	_, errs, status = s.CLI(auditor, "receipt", "-all", next.ID, "-out="+path("next.json"))
	require.Zero(t, status, errs)
	text, status = verify("next.json", "new.pem")
	require.Zero(t, status, text)
	_, errs, status = s.CLI(auditor, "receipt", next.ID)
	require.NotZero(t, status, "another one's receipt is not one's own: %s", errs)
}
