package command

import (
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// postureCommand shows what is weak about a mount.
type postureCommand struct {
	console    *console
	vault      vaultFlags
	connection string
	failOn     string
	fresh      bool
}

var _ cli.Command = (*postureCommand)(nil)

func (p *postureCommand) flags() *flag.FlagSet {
	set := newFlags("posture")
	p.vault.register(set)
	set.StringVar(&p.connection, "connection", "", "`Name` of the one connection to look at.")
	set.StringVar(&p.failOn, "fail-on", "", "`Severity` from which findings make the exit code 12: "+strings.Join(risks(), ", ")+".")
	set.BoolVar(&p.fresh, "fresh", false, "Look at the servers again, however recently they were looked at.")
	return set
}

func risks() []string {
	names := make([]string, 0, len(wire.Risks()))
	for _, risk := range wire.Risks() {
		names = append(names, string(risk))
	}
	return names
}

// Synopsis is the line in dbops -help.
func (*postureCommand) Synopsis() string { return "Show what is weak: servers, policies, agents" }

// Help is the whole help.
func (p *postureCommand) Help() string {
	return `Usage: dbops posture [options]

  Looks at the live servers behind the mount, its policies and its agents, and
  shows what is weak, the worst first, each with the way out, and a score from 0
  to 100. Needs the ACL policy of an operator or auditor.

      $ dbops posture
      $ dbops posture -connection=prod -fail-on=high` + optionsHelp(p.flags())
}

// Run shows it.
func (p *postureCommand) Run(args []string) int {
	posture, err := p.look(args)
	if err != nil {
		return p.console.fail("posture", p.vault, err)
	}
	if p.vault.format == formatJSON {
		p.console.printJSON(posture)
	} else if err := p.print(posture); err != nil {
		return p.console.fail("posture", p.vault, err)
	}
	if n := p.bad(posture); n > 0 {
		fmt.Fprintf(p.console.stderr, "Error: findings of severity %s or above: %d (%s)\n", p.failOn, n, wire.CodeCheckFailed)
		return wire.CodeCheckFailed.Info().Exit
	}
	return 0
}

func (p *postureCommand) look(args []string) (wire.Posture, error) {
	if _, err := parse(p.flags(), args); err != nil {
		return wire.Posture{}, err
	}
	if p.failOn != "" && !wire.Risk(p.failOn).Valid() {
		return wire.Posture{}, usageError("-fail-on is %q; it must be one of %s", p.failOn, strings.Join(risks(), ", "))
	}
	if p.connection != "" && !connectionName.MatchString(p.connection) {
		return wire.Posture{}, usageError("-connection is %q, which is no connection's name", p.connection)
	}
	client, err := p.console.dial(p.vault)
	if err != nil {
		return wire.Posture{}, err
	}
	ctx, stop := p.console.interruptible()
	defer stop()
	posture, err := vault.NewOverseer(client).Posture(ctx, p.connection, p.fresh)
	for i := range posture.Findings {
		posture.Findings[i].Remedy = p.vault.commands(posture.Findings[i].Remedy)
	}
	return posture, err
}

// bad counts the findings that -fail-on speaks of.
func (p *postureCommand) bad(posture wire.Posture) int {
	if p.failOn == "" {
		return 0
	}
	count := 0
	for _, f := range posture.Findings {
		if f.Severity.Rank() >= wire.Risk(p.failOn).Rank() {
			count++
		}
	}
	return count
}

func (p *postureCommand) print(posture wire.Posture) error {
	out := p.console.stdout
	if len(posture.Findings) > 0 {
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "SEVERITY\tSUBJECT\tFINDING\tSEEN\tREMEDY")
		for _, f := range posture.Findings {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", f.Severity, plain(fmt.Sprint(f.Subject)), f.ID, plain(f.Seen), plain(f.Remedy))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "Score: %d of 100", posture.Score)
	if len(posture.Deductions) > 0 {
		var parts []string
		for _, d := range posture.Deductions {
			parts = append(parts, fmt.Sprintf("%s -%d", d.ID, d.Points))
		}
		fmt.Fprintf(out, " (%s)", strings.Join(parts, ", "))
	}
	fmt.Fprintln(out)
	return nil
}
