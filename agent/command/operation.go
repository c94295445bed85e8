package command

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// operationCommand shows, follows or cancels one operation.
type operationCommand struct {
	console        *console
	vault          vaultFlags
	cancel, follow bool
	reason         string
	all            bool
}

var _ cli.Command = (*operationCommand)(nil)

func (o *operationCommand) flags() *flag.FlagSet {
	set := newFlags("operation")
	o.vault.register(set)
	set.BoolVar(&o.cancel, "cancel", false, "Cancel it. The target stays as it was.")
	set.StringVar(&o.reason, "reason", "", "`Text` that tells with -cancel why; it stands with the operation and in its receipt.")
	set.BoolVar(&o.follow, "follow", false, "Follow it to its end; the exit code is then that of dbops clone.")
	registerAll(set, &o.all)
	return set
}

// Synopsis is the line in dbops -help.
func (*operationCommand) Synopsis() string { return "Show, follow or cancel an operation" }

// Help is the whole help.
func (o *operationCommand) Help() string {
	return `Usage: dbops operation [options] <id>

  Shows one operation: the decision, the plan's digest, how long each step took,
  for each table its rows and digests on both sides, and what became of what a run
  left at its target.

      $ dbops operation -follow op-01kaysfqcv4d5nvsxgtv1fbkgs` + optionsHelp(o.flags())
}

// Run does what the options say.
func (o *operationCommand) Run(args []string) int {
	code, err := o.run(args)
	if err != nil {
		return o.console.fail("operation", o.vault, err)
	}
	return code
}

func (o *operationCommand) run(args []string) (int, error) {
	client, id, err := o.console.dialAbout(o.flags(), &o.vault, args, func(string) error {
		if o.reason != "" && !o.cancel {
			return usageError("-reason goes with -cancel")
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	requester := among(client, o.all)
	ctx, stop := o.console.interruptible()
	defer stop()
	if o.cancel {
		if err := requester.Cancel(ctx, id, o.reason); err != nil {
			return 0, err
		}
	}
	op, err := requester.Operation(ctx, id)
	if err != nil {
		return 0, err
	}
	if o.follow {
		stop() // from here on the follower has the signals
		return o.console.follow(requester, op, o.vault, false)
	}
	report, err := requester.Report(ctx, id)
	if err != nil {
		return 0, err
	}
	return o.console.show(o.vault, op, report), nil
}

// shownOperation is the JSON form of dbops operation.
type shownOperation struct {
	wire.Operation
	Report *operation.Report `json:"report,omitempty"`
}

// show prints an operation as it is and returns 0: looking at a failed one is
// no failure.
func (c *console) show(at vaultFlags, op wire.Operation, report *operation.Report) int {
	if at.format == formatJSON {
		c.printJSON(shownOperation{Operation: op, Report: report})
		return 0
	}
	printOperation(c.stdout, at, op, report)
	return 0
}

// printOperation writes everything a person wants to know of an operation of the mount
// that at leads to.
func printOperation(w io.Writer, at vaultFlags, op wire.Operation, report *operation.Report) {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, plain(value))
		}
	}
	row("Operation", op.ID)
	row("State", stateText(op))
	row("From", op.Source)
	row("Into", op.Target)
	row("Requester", op.Requester.Name)
	row("Reason", op.Reason)
	row("Decision", decisionText(op.Decision))
	row("Plan", op.PlanDigest)
	if e := op.Estimates; e != nil {
		row("Estimate", fmt.Sprintf("%d tables, about %d rows, %s", e.Tables, e.Rows, sizeText(e.Bytes)))
	}
	for _, a := range op.Approvals {
		row("Approved", approvalText(a))
	}
	for _, need := range op.ApprovalNeeds {
		row("Approval", need.String())
	}
	if op.State == wire.StateQueued {
		row("Waits", needsText(op))
	}
	row("Agent", op.Agent)
	row("Created", op.CreatedAt.Local().Format(time.DateTime))
	if op.State.Final() {
		row("Ended", fmt.Sprintf("%s, after %s", op.UpdatedAt.Local().Format(time.DateTime),
			op.UpdatedAt.Sub(op.CreatedAt).Round(100*time.Millisecond)))
	}
	switch {
	case op.Cancellation != nil:
		row("Cancel", cancellationText(*op.Cancellation))
	case op.CancelRequested && !op.State.Final():
		row("Cancel", "requested")
	}
	if !op.State.Final() {
		if op.Progress != nil {
			row("Progress", string(op.Progress.Step)+" "+progressText(op.Progress, &meter{}))
		}
	}
	if r := op.Result; r != nil {
		if r.Code != "" {
			row("Why", fmt.Sprintf("%s (%s)", r.Reason, r.Code))
			row("Step", string(r.Step))
			row("Hint", r.Hint)
		}
		if r.Rows != "" {
			row("Copied", fmt.Sprintf("%s tables, %s rows, %s bytes", dash(r.Tables), r.Rows, dash(r.Bytes)))
		}
	}
	state, todo := cleanupText(at, op)
	row("Cleanup", state)
	if op.CleanupAttempts > 0 {
		row("Tries", strconv.Itoa(op.CleanupAttempts))
	}
	if op.Result != nil {
		row("Last try", op.Result.CleanupHint)
	}
	row("To do", todo)
	if report != nil {
		row("Snapshot", report.Snapshot)
		if report.Objects > 0 {
			row("Compared", fmt.Sprintf("%d catalog objects, %d tables", report.Objects, len(report.Tables)))
		}
	}
	flush(table)
	if report != nil {
		printSteps(&b, report)
		printTables(&b, report.Tables)
	}
	_, _ = io.WriteString(w, b.String()) // a terminal that is gone sees nothing anyway
}

// cleanupText is how far agents are with what the run left at the target, and what
// somebody has to do about it; empty when there is nothing.
func cleanupText(at vaultFlags, op wire.Operation) (state, todo string) {
	state = string(op.Cleanup)
	switch op.Cleanup {
	case wire.CleanupPending:
		return state + ": something may be left at " + op.Target, "nothing while an agent runs that may work on " + op.Target + ": it is tried five times at most; without one, clean it and acknowledge that after an hour"
	case wire.CleanupDone:
		return state + ": what the run had left at " + op.Target + " is removed", ""
	case wire.CleanupFailed:
		// Databases of an operation are named after the part of its id that is its own.
		_, own, _ := strings.Cut(op.ID, "-")
		return state + ": agents have given up, something may be left at " + op.Target,
			fmt.Sprintf("on the server of %s, remove the databases named dbops_…_%s; then: vault write%s %s reason=…",
				op.Target, strings.ToLower(own), at.vaultOptions(), at.below("all/operations/"+op.ID+"/acknowledge"))
	case wire.CleanupAcknowledged:
		if a := op.Acknowledged; a != nil {
			state += fmt.Sprintf(": cleaned by hand, says %s at %s: %s", a.Name, a.At.Local().Format(time.DateTime), a.Reason)
		}
	}
	return state, ""
}

// flush ends a table in memory, which cannot fail.
func flush(table *tabwriter.Writer) { _ = table.Flush() }

func printSteps(b *strings.Builder, report *operation.Report) {
	if len(report.DurationsMS) == 0 {
		return
	}
	b.WriteString("\n")
	table := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "STEP\tSECONDS\t")
	for _, step := range wire.Steps() {
		if ms, done := report.DurationsMS[step]; done {
			fmt.Fprintf(table, "%s\t%.2f\t\n", step, float64(ms)/1000)
		}
	}
	flush(table)
}

func printTables(b *strings.Builder, tables []operation.TableReport) {
	if len(tables) == 0 {
		return
	}
	b.WriteString("\n")
	table := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tROWS AT SOURCE\tROWS AT TARGET\tDIGEST AT SOURCE\tDIGEST AT TARGET\tEQUAL")
	for _, t := range tables {
		equal := "yes"
		if !t.Match {
			equal = "NO"
		}
		fmt.Fprintf(table, "%s.%s\t%d\t%d\t%s\t%s\t%s\n", plain(t.Schema), plain(t.Name), t.SourceRows, t.Rows,
			plain(shortDigest(t.SourceDigest)), plain(shortDigest(t.Digest)), equal)
	}
	flush(table)
}

// shortDigest is enough of a digest to compare by eye; -format=json has it all.
func shortDigest(digest string) string {
	if len(digest) > 12 {
		return digest[:12]
	}
	return dash(digest)
}

// cancellationText is who asked to cancel, in one line.
func cancellationText(c wire.Cancellation) string {
	text := fmt.Sprintf("requested by %s, %s", c.Name, c.Time.Local().Format(time.DateTime))
	if c.Reason != "" {
		text += ": " + c.Reason
	}
	return text
}

func stateText(op wire.Operation) string {
	if code := endCode(op); op.State.Final() && code != "" && string(code) != string(op.State) {
		return fmt.Sprintf("%s (%s)", op.State, code)
	}
	return string(op.State)
}

// decisionText is a decision in one line.
func decisionText(d wire.Decision) string {
	word := "refused"
	if d.Allowed {
		word = "allowed"
	}
	switch {
	case d.Policy != "" && d.Rule != "":
		word += fmt.Sprintf(" by rule %s of policy %s", d.Rule, d.Policy)
	case d.Policy != "":
		word += " by policy " + d.Policy
	case len(d.Policies) > 0:
		word += " by policy " + strings.Join(d.Policies, ", ")
	}
	if d.Reason != "" {
		word += ": " + d.Reason
	}
	return word
}
