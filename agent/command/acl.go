package command

import (
	"flag"
	"fmt"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// aclCommand prints the ACL policy of one duty. It talks to nobody.
type aclCommand struct {
	console         *console
	mount, accessor string
}

var _ cli.Command = (*aclCommand)(nil)

func (a *aclCommand) flags() *flag.FlagSet {
	set := newFlags("acl")
	set.StringVar(&a.mount, "mount", wire.DefaultMount, "`Path` at which dbops is mounted.")
	set.StringVar(&a.accessor, "accessor", "", "`Accessor` of the auth method agents log in with; needed for agent.")
	return set
}

// Synopsis is the line in dbops -help.
func (*aclCommand) Synopsis() string { return "Print the ACL policy of a duty" }

// Help is the whole help.
func (a *aclCommand) Help() string {
	duties := make([]string, 0, len(vault.Duties()))
	for _, duty := range vault.Duties() {
		duties = append(duties, string(duty))
	}
	return "Usage: dbops acl [options] <duty>\n\n" +
		"  Prints the ACL policy for one duty, as dbops setup writes it:\n  " + strings.Join(duties, ", ") + ".\n\n" +
		"      $ dbops acl requester | vault policy write dbops-requester -" +
		optionsHelp(a.flags())
}

// Run prints it.
func (a *aclCommand) Run(args []string) int {
	words, err := parse(a.flags(), args, "duty")
	if err != nil {
		return a.console.fail("acl", vaultFlags{format: formatTable}, err)
	}
	text, err := vault.ACLPolicy(vault.Duty(words[0]), wire.Mount(a.mount), a.accessor)
	if err != nil {
		return a.console.fail("acl", vaultFlags{format: formatTable}, err)
	}
	fmt.Fprint(a.console.stdout, text)
	return 0
}
