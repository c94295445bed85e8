package command

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// operationCommand shows, follows or cancels one operation.
type operationCommand struct {
	console        *console
	vault          vaultFlags
	cancel, follow bool
	all            bool
}

var _ cli.Command = (*operationCommand)(nil)

func (o *operationCommand) flags() *flag.FlagSet {
	set := newFlags("operation")
	o.vault.register(set)
	set.BoolVar(&o.cancel, "cancel", false, "Cancel it. The target stays as it was.")
	set.BoolVar(&o.follow, "follow", false, "Follow it to its end; the exit code is then that of dbops clone.")
	set.BoolVar(&o.all, "all", false, "Look among everybody's; needs the ACL policy of an operator or auditor.")
	return set
}

// Synopsis is the line in dbops -help.
func (*operationCommand) Synopsis() string { return "Show, follow or cancel an operation" }

// Help is the whole help.
func (o *operationCommand) Help() string {
	return `Usage: dbops operation [options] <id>

  Shows one operation: the decision, the plan's digest, how long each step took,
  and for each table its rows and digests on both sides.

      $ dbops operation -follow op-01kaysfqcv4d5nvsxgtv1fbkgs` + optionsHelp(o.flags())
}

// Run does what the options say.
func (o *operationCommand) Run(args []string) int {
	code, err := o.run(args)
	if err != nil {
		return o.console.fail("operation", o.vault.format, err)
	}
	return code
}

func (o *operationCommand) run(args []string) (int, error) {
	words, err := parse(o.flags(), args, "id")
	if err != nil {
		return 0, err
	}
	if err := checkFormat(o.vault.format); err != nil {
		return 0, err
	}
	id := words[0]
	if !connectionName.MatchString(id) {
		return 0, usageError("%q is no operation's id", id)
	}
	client, err := o.console.dial(o.vault)
	if err != nil {
		return 0, err
	}
	requester := vault.NewRequester(client)
	if o.all {
		requester = vault.NewOverseer(client)
	}
	ctx, stop := o.console.interruptible()
	defer stop()
	if o.cancel {
		if err := requester.Cancel(ctx, id); err != nil {
			return 0, err
		}
	}
	op, err := requester.Operation(ctx, id)
	if err != nil {
		return 0, err
	}
	if o.follow {
		stop() // from here on the follower has the signals
		return o.console.follow(requester, op, o.vault.format, false)
	}
	report, err := requester.Report(ctx, id)
	if err != nil {
		return 0, err
	}
	return o.console.show(o.vault.format, op, report), nil
}

// shownOperation is the JSON form of dbops operation.
type shownOperation struct {
	wire.Operation
	Report *operation.Report `json:"report,omitempty"`
}

// show prints an operation as it is and returns 0: looking at a failed one is
// no failure.
func (c *console) show(format string, op wire.Operation, report *operation.Report) int {
	if format == formatJSON {
		c.printJSON(shownOperation{Operation: op, Report: report})
		return 0
	}
	printOperation(c.stdout, op, report)
	return 0
}

// printOperation writes everything a person wants to know of an operation.
func printOperation(w io.Writer, op wire.Operation, report *operation.Report) {
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
	} else {
		if op.CancelRequested {
			row("Cancel", "requested")
		}
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
