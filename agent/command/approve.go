package command

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// approveCommand consents to the plan of an operation.
type approveCommand struct {
	console         *console
	vault           vaultFlags
	digest, comment string
}

var _ cli.Command = (*approveCommand)(nil)

func (a *approveCommand) flags() *flag.FlagSet {
	set := newFlags("approve")
	a.vault.register(set)
	set.StringVar(&a.digest, "plan-digest", "", "`Digest` of the plan that was reviewed, as dbops plan prints it. Without it the plan is\nshown and asked about, on a terminal only.")
	set.StringVar(&a.comment, "comment", "", "`Text` that stands with the approval.")
	return set
}

// Synopsis is the line in dbops -help.
func (*approveCommand) Synopsis() string { return "Approve the plan of an operation" }

// Help is the whole help.
func (a *approveCommand) Help() string {
	return `Usage: dbops approve [options] <id>

  Approves what dbops plan has shown. The digest says which plan that was: when
  it is another one by now, nothing is approved. Policies name the groups whose
  members may approve; nobody may approve what they asked for themselves.

      $ dbops approve -plan-digest=sha256:9f86… op-01kaysfqcv4d5nvsxgtv1fbkgs` + optionsHelp(a.flags())
}

// Run approves.
func (a *approveCommand) Run(args []string) int {
	if err := a.run(args); err != nil {
		return a.console.fail("approve", a.vault, err)
	}
	return 0
}

func (a *approveCommand) run(args []string) error {
	client, id, err := a.console.dialAbout(a.flags(), &a.vault, args, func(id string) error {
		if a.digest == "" && (a.console.answers == nil || a.vault.format != formatTable) {
			return usageError("-plan-digest is missing: say which plan was reviewed; dbops plan%s %s prints it", a.vault.options(), id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	requester := vault.NewRequester(client)
	ctx, stop := a.console.interruptible()
	defer stop()
	if a.digest == "" {
		if a.digest, err = a.review(ctx, requester, id); err != nil {
			return err
		}
	}
	op, err := requester.Approve(ctx, id, a.digest, a.comment)
	if err != nil {
		return err
	}
	a.console.show(a.vault, op, nil)
	return nil
}

// review shows the plan and asks whoever sits there.
func (a *approveCommand) review(ctx context.Context, requester *vault.Requester, id string) (digest string, err error) {
	text, digest, err := requester.Plan(ctx, id)
	if err != nil {
		return "", err
	}
	op, err := requester.Operation(ctx, id)
	if err != nil {
		return "", err
	}
	if err := printPlan(a.console.stdout, a.vault, op, text, digest); err != nil {
		return "", err
	}
	fmt.Fprint(a.console.stdout, "\nApprove this plan? Only yes does: ")
	answer := make(chan string, 1)
	go func() { // a read of a terminal cannot be interrupted; it ends with the program
		line, _ := bufio.NewReader(a.console.answers).ReadString('\n') // no answer is no yes
		answer <- line
	}()
	var line string
	select {
	case line = <-answer:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if strings.TrimSpace(line) != "yes" {
		return "", &wire.Error{Code: wire.CodeCancelled, Reason: "not approved", Hint: "dbops reject -reason=… " + id + " ends the operation"}
	}
	return digest, nil
}

// rejectCommand ends an operation that waits for approval.
type rejectCommand struct {
	console *console
	vault   vaultFlags
	reason  string
}

var _ cli.Command = (*rejectCommand)(nil)

func (r *rejectCommand) flags() *flag.FlagSet {
	set := newFlags("reject")
	r.vault.register(set)
	set.StringVar(&r.reason, "reason", "", "`Text` that tells the requester why.")
	return set
}

// Synopsis is the line in dbops -help.
func (*rejectCommand) Synopsis() string { return "Reject the plan of an operation, which ends it" }

// Help is the whole help.
func (r *rejectCommand) Help() string {
	return `Usage: dbops reject [options] -reason=<text> <id>

  Ends an operation that waits for approval, or for an agent after it. Whoever
  may approve it may reject it; one rejection is enough.

      $ dbops reject -reason="not during the sale" op-01kaysfqcv4d5nvsxgtv1fbkgs` + optionsHelp(r.flags())
}

// Run rejects.
func (r *rejectCommand) Run(args []string) int {
	if err := r.run(args); err != nil {
		return r.console.fail("reject", r.vault, err)
	}
	return 0
}

func (r *rejectCommand) run(args []string) error {
	client, id, err := r.console.dialAbout(r.flags(), &r.vault, args, func(string) error {
		if strings.TrimSpace(r.reason) == "" {
			return usageError("-reason is missing: the requester has to know why")
		}
		return nil
	})
	if err != nil {
		return err
	}
	ctx, stop := r.console.interruptible()
	defer stop()
	op, err := vault.NewRequester(client).Reject(ctx, id, r.reason)
	if err != nil {
		return err
	}
	r.console.show(r.vault, op, nil)
	return nil
}

// needsText says what a waiting operation still needs: approvals, or a time at which
// allowed_hours let it run.
func needsText(op wire.Operation) string {
	if op.State == wire.StateQueued && !op.NotBefore.IsZero() {
		return "not before " + op.NotBefore.Local().Format(time.DateTime) + ", when allowed_hours let it run"
	}
	if op.State != wire.StateAwaitingApproval {
		return ""
	}
	var missing []string
	for _, need := range op.ApprovalNeeds {
		if need.Missing > 0 {
			missing = append(missing, need.String())
		}
	}
	return strings.Join(missing, ", ")
}

// approvalText is an approval in one line.
func approvalText(a wire.Approval) string {
	text := fmt.Sprintf("by %s, %s", a.Name, a.Time.Local().Format(time.DateTime))
	if a.Comment != "" {
		text += ": " + a.Comment
	}
	if a.NotCounted != "" {
		text += " (does not count: " + a.NotCounted.String() + ")"
	}
	return text
}
