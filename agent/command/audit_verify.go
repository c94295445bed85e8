package command

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/auditlog"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// auditVerifyCommand holds audit files against what Vault knows.
type auditVerifyCommand struct {
	auditFiles
	options auditlog.VerifyOptions
}

var _ cli.Command = (*auditVerifyCommand)(nil)

func (v *auditVerifyCommand) flags() *flag.FlagSet {
	set := newFlags("audit verify")
	v.register(set)
	set.BoolVar(&v.options.Partial, "partial", false, "Chains may begin in the middle: older files are gone.")
	return set
}

// Synopsis is the line in dbops -help.
func (*auditVerifyCommand) Synopsis() string {
	return "Check audit files: is every event there, unaltered, in order"
}

// Help is the whole help.
func (v *auditVerifyCommand) Help() string {
	return `Usage: dbops audit verify [options] <file>...

  Follows each agent's chain of events, and the chain of facts, through Vault's audit
  files and says what counts as ours, what is forged, what is missing, what was
  altered or put in another order, and in which file and line. Exit code 0 says that
  the chains are whole and end as Vault knows; 14 that there are problems.
` + auditFilesHelp + `
      $ dbops audit verify /var/log/vault/audit.log /var/log/vault/audit.log.1.gz` + optionsHelp(v.flags())
}

// Run verifies.
func (v *auditVerifyCommand) Run(args []string) int {
	ctx, stop := v.console.interruptible()
	defer stop()
	anchors, inputs, err := v.read(ctx, v.flags(), args)
	if err != nil {
		return v.console.fail("audit verify", v.vault, err)
	}
	report, err := auditlog.Verify(ctx, anchors, inputs, v.options)
	if err != nil {
		return v.console.fail("audit verify", v.vault, err)
	}
	if v.vault.format == formatJSON {
		v.console.printJSON(struct {
			Intact bool `json:"intact"`
			auditlog.Report
		}{report.Intact(), report})
	} else {
		fmt.Fprint(v.console.stdout, verifyText(report))
	}
	if report.Intact() {
		return 0
	}
	return wire.CodeChainBroken.Info().Exit
}

// verifyText is the report for people.
func verifyText(r auditlog.Report) string {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CHAIN\tEVENTS\tCOPIES\tFIRST\tLAST\tEND IN VAULT\tCONFIRMED")
	events := int64(0)
	for _, c := range r.Chains {
		confirmed := "no"
		if c.Confirmed {
			confirmed = "yes"
		}
		events += c.Events
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", c.Chain, c.Events, c.Copies, dash(c.First), dash(c.Last), dash(c.End), confirmed)
	}
	flush(table)
	for _, standing := range slices.Sorted(maps.Keys(r.NotCounted)) {
		fmt.Fprintf(&b, "Not counted: %d entries, %s\n", r.NotCounted[standing], standing)
	}
	for _, e := range r.Examples {
		fmt.Fprintf(&b, "  %s: %s\n", e.Place, plain(strings.Join(strings.Fields(e.Why), " ")))
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "Note: %s\n", plain(note))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "PROBLEM %s: %s\n", p.Kind, plain(p.Message))
	}
	if r.Unlisted > 0 {
		fmt.Fprintf(&b, "and %d more.\n", r.Unlisted)
	}
	if r.Intact() {
		fmt.Fprintf(&b, "Intact: %d chains with %d events in %d files.\n", len(r.Chains), events, len(r.Files))
	} else {
		fmt.Fprintf(&b, "NOT intact: %d problems.\n", int64(len(r.Problems))+r.Unlisted)
	}
	return b.String()
}
