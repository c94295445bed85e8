package command

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// auditChainsCommand shows the ends of chains, to be kept for later.
type auditChainsCommand struct {
	console *console
	vault   vaultFlags
	json    bool
}

var _ cli.Command = (*auditChainsCommand)(nil)

func (a *auditChainsCommand) flags() *flag.FlagSet {
	set := newFlags("audit chains")
	a.vault.register(set)
	set.BoolVar(&a.json, "json", false, "The same as -format=json.")
	return set
}

// Synopsis is the line in dbops -help.
func (*auditChainsCommand) Synopsis() string { return "Show where each chain of events ends" }

// Help is the whole help.
func (a *auditChainsCommand) Help() string {
	return `Usage: dbops audit chains [options]

  Shows the last event of each agent, and the last fact, as Vault knows them. Kept
  somewhere else, it lets dbops audit verify -chains=<file> check files without Vault,
  and against an earlier time.

      $ dbops audit chains -json >chains.json` + optionsHelp(a.flags())
}

// Run shows them.
func (a *auditChainsCommand) Run(args []string) int {
	chains, err := a.read(args)
	if err != nil {
		return a.console.fail("audit chains", a.vault, err)
	}
	if a.vault.format == formatJSON {
		a.console.printJSON(chains)
		return 0
	}
	table := tabwriter.NewWriter(a.console.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CHAIN\tEND\tHASH")
	for _, name := range slices.Sorted(maps.Keys(chains.Agents)) {
		c := chains.Agents[name]
		fmt.Fprintf(table, "%s\t%s/%s\t%s\n", name, c.Epoch, c.Seq, dash(c.Head))
	}
	fmt.Fprintf(table, "(facts)\t%s/%s\t%s\n", chains.Facts.Epoch, chains.Facts.Seq, dash(chains.Facts.Head))
	if err := table.Flush(); err != nil {
		return a.console.fail("audit chains", a.vault, err)
	}
	return 0
}

func (a *auditChainsCommand) read(args []string) (wire.Chains, error) {
	if _, err := parse(a.flags(), args); err != nil {
		return wire.Chains{}, err
	}
	if a.json {
		a.vault.format = formatJSON
	}
	client, err := a.console.dial(a.vault)
	if err != nil {
		return wire.Chains{}, err
	}
	ctx, stop := a.console.interruptible()
	defer stop()
	return vault.NewRequester(client).Chains(ctx)
}
