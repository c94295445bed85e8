package command

import (
	"fmt"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// versionCommand prints which dbops this is.
type versionCommand struct{ console *console }

var _ cli.Command = (*versionCommand)(nil)

// Synopsis is the line in dbops -help.
func (*versionCommand) Synopsis() string { return "Print the version" }

// Help is the whole help.
func (*versionCommand) Help() string {
	return "Usage: dbops version\n\n  Prints the version of dbops and of the vocabulary it shares with plugin and agent."
}

// Run prints it.
func (v *versionCommand) Run(args []string) int {
	if _, err := parse(newFlags("version"), args); err != nil {
		return v.console.fail("version", vaultFlags{format: formatTable}, err)
	}
	fmt.Fprintf(v.console.stdout, "dbops %s (API %d)\n", v.console.version, wire.Version)
	return 0
}
