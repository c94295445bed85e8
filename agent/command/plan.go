package command

import (
	"flag"
	"fmt"

	"github.com/hashicorp/cli"
)

// planCommand shows the plan of an operation and checks its digest.
type planCommand struct {
	console *console
	vault   vaultFlags
	all     bool
}

var _ cli.Command = (*planCommand)(nil)

func (p *planCommand) flags() *flag.FlagSet {
	set := newFlags("plan")
	p.vault.register(set)
	registerAll(set, &p.all)
	return set
}

// Synopsis is the line in dbops -help.
func (*planCommand) Synopsis() string { return "Show the plan of an operation" }

// Help is the whole help.
func (p *planCommand) Help() string {
	return `Usage: dbops plan [options] <id>

  Shows what an operation does: both databases as they were found, what happens
  at the target, and each table with its columns. The digest of the text is taken
  here again and compared with the one Vault recorded. While the operation waits
  for approval, the command that approves exactly this plan stands below. With
  -format=json the text is printed byte for byte.

      $ dbops plan op-01kaysfqcv4d5nvsxgtv1fbkgs` + optionsHelp(p.flags())
}

// Run shows it.
func (p *planCommand) Run(args []string) int {
	if err := p.run(args); err != nil {
		return p.console.fail("plan", p.vault, err)
	}
	return 0
}

func (p *planCommand) run(args []string) error {
	client, id, err := p.console.dialAbout(p.flags(), &p.vault, args, nil)
	if err != nil {
		return err
	}
	requester := among(client, p.all)
	ctx, stop := p.console.interruptible()
	defer stop()
	text, digest, err := requester.Plan(ctx, id)
	if err != nil {
		return err
	}
	if p.vault.format == formatJSON {
		fmt.Fprintln(p.console.stdout, text)
		return nil
	}
	op, err := requester.Operation(ctx, id)
	if err != nil {
		return err
	}
	return printPlan(p.console.stdout, p.vault, op, text, digest)
}
