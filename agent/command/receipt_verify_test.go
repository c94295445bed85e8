package command

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/receipt"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Whoever reads a receipt sees which approvals stood behind the run and which did not.
func TestPrintReceipt_Approvals(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	v := receipt.Verified{Receipt: wire.Receipt{Attested: wire.Attested{
		Approvals: []wire.ReceiptApproval{
			{Name: "bob", EntityID: "1", PlanDigest: "sha256:a", At: at, NotCounted: wire.NotCountedNoMember},
			{Name: "carol", EntityID: "2", PlanDigest: "sha256:a", At: at},
			{Name: "dave", EntityID: "3", PlanDigest: "sha256:a", At: at, NotCounted: "of a later version\x1b[2J"},
		},
		ApprovalsCheckedAt: at.Add(time.Hour),
		End:                wire.ReceiptEnd{Cancellation: &wire.Cancellation{User: wire.User{Name: "root"}, Time: at, Reason: "wrong day\x1b[2J"}},
	}}}
	var out bytes.Buffer
	printReceipt(&out, v)
	require.Regexp(t, `Approved +2026-11-24T12:00:00Z by bob \(entity 1\), plan sha256:a, DID NOT COUNT: its giver was no member of the group any more\n`, out.String())
	require.Regexp(t, `by carol \(entity 2\), plan sha256:a\n`, out.String())
	require.Regexp(t, `DID NOT COUNT: of a later version\\x1b\[2J\n`, out.String())
	require.Regexp(t, `Cancel +requested by root \(entity -\), 2026-11-24T12:00:00Z: wrong day\\x1b\[2J\n`, out.String())
	require.Regexp(t, `judged +2026-11-24T13:00:00Z\n`, out.String())
	require.Contains(t, approvalText(wire.Approval{User: wire.User{Name: "bob"}, NotCounted: wire.NotCountedExpired}), "(does not count: it had expired)")
}
