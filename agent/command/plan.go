package command

import (
	"flag"
	"fmt"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
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
	set.BoolVar(&p.all, "all", false, "Look among everybody's; needs the ACL policy of an operator or auditor.")
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
		return p.console.fail("plan", p.vault.format, err)
	}
	return 0
}

func (p *planCommand) run(args []string) error {
	words, err := parse(p.flags(), args, "id")
	if err != nil {
		return err
	}
	if err := checkFormat(p.vault.format); err != nil {
		return err
	}
	id := words[0]
	if !connectionName.MatchString(id) {
		return usageError("%q is no operation's id", id)
	}
	client, err := p.console.dial(p.vault)
	if err != nil {
		return err
	}
	requester := vault.NewRequester(client)
	if p.all {
		requester = vault.NewOverseer(client)
	}
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
	return printPlan(p.console.stdout, op, text, digest)
}
