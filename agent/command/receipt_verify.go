package command

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/receipt"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// receiptVerifyCommand checks a receipt with public keys alone.
type receiptVerifyCommand struct {
	console              *console
	keys, report, format string
}

var _ cli.Command = (*receiptVerifyCommand)(nil)

func (v *receiptVerifyCommand) flags() *flag.FlagSet {
	set := newFlags("receipt verify")
	set.StringVar(&v.keys, "keys", "", "`File` with the public keys, as PEM.")
	set.StringVar(&v.report, "report", "", "`File` with the operation's report; it is compared with what the receipt says of it.")
	registerFormat(set, &v.format)
	return set
}

// Synopsis is the line in dbops -help.
func (*receiptVerifyCommand) Synopsis() string { return "Verify a receipt, without Vault" }

// Help is the whole help.
func (v *receiptVerifyCommand) Help() string {
	return `Usage: dbops receipt verify [options] <file>

  Verifies a receipt with public keys alone, and prints what Vault's plugin attests
  apart from what it was only told by the agent. Ends with 0 when the receipt is
  as one of the keys has signed it, and with 17 when it is not.

      $ vault read -field=pem dbops/keys > keys.pem
      $ dbops receipt verify receipt.json -keys=keys.pem` + optionsHelp(v.flags())
}

// Run verifies.
func (v *receiptVerifyCommand) Run(args []string) int {
	verified, err := v.verify(args)
	if err != nil {
		return v.console.fail("receipt verify", vaultFlags{format: v.format}, err)
	}
	if v.format == formatJSON {
		v.console.printJSON(struct {
			Verified bool              `json:"verified"`
			KeyID    string            `json:"key_id"`
			Subjects []receipt.Subject `json:"subjects"`
			wire.Receipt
		}{true, verified.KeyID, verified.Subjects, verified.Receipt})
		return 0
	}
	printReceipt(v.console.stdout, verified)
	return 0
}

func (v *receiptVerifyCommand) verify(args []string) (receipt.Verified, error) {
	words, err := parse(v.flags(), args, "file")
	if err != nil {
		return receipt.Verified{}, err
	}
	if v.keys == "" {
		return receipt.Verified{}, usageError("-keys is missing")
	}
	content, err := readFile("receipt", words[0])
	if err != nil {
		return receipt.Verified{}, err
	}
	bundle, err := readFile("keys", v.keys)
	if err != nil {
		return receipt.Verified{}, err
	}
	keys, err := receipt.Keys(bundle)
	if err != nil {
		return receipt.Verified{}, err
	}
	verified, err := receipt.Verify(context.Background(), content, keys)
	if err != nil || v.report == "" {
		return verified, err
	}
	report, err := readFile("report", v.report)
	if err != nil {
		return receipt.Verified{}, err
	}
	return verified, checkReport(verified.ReportedByAgent, report)
}

// checkReport compares a report with a receipt: its bytes, and its tables with
// their root. One newline more at the end is the editor's.
func checkReport(reported *wire.Reported, text []byte) error {
	differs := func(reason string) error {
		return &wire.Error{Code: wire.CodeReceiptInvalid, Reason: "the report is not that of the receipt: " + reason}
	}
	if reported == nil || reported.ReportDigest == "" {
		return differs("the receipt knows of none")
	}
	trimmed := []byte(strings.TrimSuffix(string(text), "\n"))
	if reported.ReportDigest != wire.Digest(text) && reported.ReportDigest != wire.Digest(trimmed) {
		return differs("its digest is another")
	}
	var report operation.Report
	if err := json.Unmarshal(text, &report); err != nil {
		return differs("it cannot be read")
	}
	root, err := operation.TablesRoot(report.Tables)
	if err != nil {
		return err
	}
	if root != reported.TablesRoot && len(report.Tables) > 0 {
		return differs("its tables have another root")
	}
	return nil
}

// printReceipt writes a receipt for people, what is attested apart from what was
// reported.
func printReceipt(w io.Writer, v receipt.Verified) {
	var b strings.Builder
	fmt.Fprintf(&b, "Verified: signed with key %s\n", v.KeyID)
	b.WriteString("\nATTESTED by the plugin\n\n")
	printAttested(&b, v.Attested)
	b.WriteString("\nREPORTED BY THE AGENT, attested by nobody\n\n")
	if v.ReportedByAgent == nil {
		b.WriteString("  nothing\n")
	} else {
		printReported(&b, v.ReportedByAgent)
	}
	_, _ = io.WriteString(w, b.String()) // a terminal that is gone sees nothing anyway
}

// rows is a table of names and values, without those that are empty.
type rows struct{ table *tabwriter.Writer }

func newRows(b *strings.Builder) rows { return rows{tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)} }

// add takes values from whoever wrote them.
func (r rows) add(name, value string) {
	if value != "" {
		fmt.Fprintf(r.table, "  %s\t%s\n", name, plain(value))
	}
}

func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func printAttested(b *strings.Builder, a wire.Attested) {
	r := newRows(b)
	q := a.Request
	r.add("Operation", q.OperationID)
	r.add("What", fmt.Sprintf("%s of %s into %s", q.Kind, q.Source, q.Target))
	for _, name := range slices.Sorted(maps.Keys(q.Options)) {
		r.add("Option", name+"="+q.Options[name])
	}
	r.add("Requester", fmt.Sprintf("%s (entity %s)", q.Requester.Name, q.Requester.EntityID))
	r.add("Reason", q.Reason)
	r.add("Requested", instant(q.At))
	decision := "refused"
	if a.Decision.Allowed {
		decision = "allowed"
	}
	r.add("Decision", strings.TrimSuffix(fmt.Sprintf("%s: %s", decision, a.Decision.Reason), ": "))
	for _, p := range a.Decision.Policies {
		r.add("Policy", fmt.Sprintf("%s, version %s", p.Name, dash(p.Version)))
	}
	for _, name := range slices.Sorted(maps.Keys(a.Decision.Obligations)) {
		r.add("Obligation", name+" = "+a.Decision.Obligations[name])
	}
	for _, name := range slices.Sorted(maps.Keys(a.Pins)) {
		r.add("Pinned", name+" "+a.Pins[name])
	}
	r.add("Plan", a.PlanDigest)
	r.add("Shape", a.ShapeDigest)
	if a.ShapeDigest != "" {
		r.add("Shape seen", strconv.FormatBool(a.ShapeConfirmed)+" (equal in the copying snapshot)")
	}
	for _, p := range a.Approvals {
		text := fmt.Sprintf("%s by %s (entity %s), plan %s", instant(p.At), p.Name, p.EntityID, p.PlanDigest)
		if p.NotCounted != "" {
			text += ", DID NOT COUNT: " + p.NotCounted.String()
		}
		r.add("Approved", text)
	}
	r.add("  judged", instant(a.ApprovalsCheckedAt))
	for _, c := range a.Claims {
		r.add("Claim", fmt.Sprintf("%s of agent %s, %s, %s to %s", c.Fence, c.Agent, c.Phase, instant(c.From), instant(c.To)))
		if c.Chain != nil {
			r.add("  events", fmt.Sprintf("up to epoch %s, seq %s, head %s", c.Chain.Epoch, c.Chain.Seq, dash(c.Chain.Head)))
		}
	}
	for _, c := range a.Accounts {
		r.add("Account", fmt.Sprintf("%s, %s on %s, claim %s, %s to %s", c.Username, c.Purpose, c.Connection, dash(c.Fence), instant(c.IssuedAt), instant(c.EndedAt)))
	}
	if n := a.ClaimsOmitted + a.AccountsOmitted; n > 0 {
		r.add("Left out", fmt.Sprintf("%d claims, %d accounts", a.ClaimsOmitted, a.AccountsOmitted))
	}
	r.add("Ended", fmt.Sprintf("%s by the %s, %s", a.End.State, a.End.By, instant(a.End.At)))
	if c := a.End.Cancellation; c != nil {
		r.add("Cancel", strings.TrimSuffix(fmt.Sprintf("requested by %s (entity %s), %s: %s", c.Name, dash(c.EntityID), instant(c.Time), c.Reason), ": "))
	}
	r.add("Code", string(a.End.Code))
	r.add("Why", a.End.Reason)
	r.add("Cleanup", a.End.Cleanup)
	if said := a.End.Acknowledged; said != nil {
		r.add("  by hand", fmt.Sprintf("%s says %s (entity %s): %s", instant(said.At), said.Name, said.EntityID, said.Reason))
	}
	r.add("Supersedes", a.Supersedes)
	if a.Incomplete {
		r.add("Incomplete", "begun under a version that kept no claims and accounts")
	}
	r.add("Mount", fmt.Sprintf("%s, plugin %s", a.Mount.ID, a.Mount.PluginVersion))
	flush(r.table)
}

func printReported(b *strings.Builder, p *wire.Reported) {
	r := newRows(b)
	r.add("Outcome", string(p.Outcome))
	r.add("Code", string(p.Code))
	r.add("Why", p.Reason)
	r.add("Step", string(p.Step))
	r.add("Tables", p.Tables)
	r.add("Rows", p.Rows)
	r.add("Bytes", p.Bytes)
	r.add("Root of tables", p.TablesRoot)
	r.add("Snapshot", p.Snapshot)
	r.add("Masked columns", strings.Join(p.MaskedColumns, ", "))
	if s := p.Sandbox; s != nil {
		r.add("Worker image", s.WorkerImageID)
		r.add("Base image", s.BaseImageID)
		r.add("Runtime", s.Runtime)
		if c := s.Container; c != nil {
			r.add("Container", fmt.Sprintf("network %s, user %s, read-only root %t, capabilities dropped %s, added %s, memory %s bytes",
				c.Network, c.User, c.ReadOnlyRoot, dash(c.CapabilitiesDropped), dash(c.CapabilitiesAdded), c.MemoryBytes))
		}
	}
	if c := p.Audit; c != nil {
		r.add("Audit devices", fmt.Sprintf("%d at %s", c.Devices, instant(c.CheckedAt)))
	}
	r.add("Report", p.ReportDigest)
	flush(r.table)
}
