package command

import (
	"bytes"
	"encoding/json"
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

  Shows what an operation does: both databases as they were found and each table
  with its columns. The digest of the text is taken here again and compared with
  the one Vault recorded. With -format=json the text is printed byte for byte.

      $ dbops plan op-01kaysfqcv4d5nvsxgtv1fbkgs` + optionsHelp(p.flags())
}

// Run shows it.
func (p *planCommand) Run(args []string) int {
	text, digest, err := p.read(args)
	if err != nil {
		return p.console.fail("plan", p.vault.format, err)
	}
	if p.vault.format == formatJSON {
		fmt.Fprintln(p.console.stdout, text)
		return 0
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(text), "", "  "); err != nil {
		return p.console.fail("plan", p.vault.format, fmt.Errorf("read plan: %w", err))
	}
	fmt.Fprintf(p.console.stdout, "%s\n\nDigest: %s (checked)\n", indented.String(), digest)
	return 0
}

func (p *planCommand) read(args []string) (text, digest string, err error) {
	words, err := parse(p.flags(), args, "id")
	if err != nil {
		return "", "", err
	}
	if err := checkFormat(p.vault.format); err != nil {
		return "", "", err
	}
	if !connectionName.MatchString(words[0]) {
		return "", "", usageError("%q is no operation's id", words[0])
	}
	client, err := p.console.dial(p.vault)
	if err != nil {
		return "", "", err
	}
	requester := vault.NewRequester(client)
	if p.all {
		requester = vault.NewOverseer(client)
	}
	ctx, stop := p.console.interruptible()
	defer stop()
	return requester.Plan(ctx, words[0])
}
