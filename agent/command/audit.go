package command

import "github.com/hashicorp/cli"

// auditCommand is the parent of what is done with audit files.
type auditCommand struct{}

var _ cli.Command = auditCommand{}

// auditCommands are its children.
func auditCommands(c *console) map[string]cli.Command {
	return map[string]cli.Command{
		"audit verify": &auditVerifyCommand{auditFiles: auditFiles{console: c}},
		"audit search": &auditSearchCommand{auditFiles: auditFiles{console: c}},
		"audit chains": &auditChainsCommand{console: c},
	}
}

// Synopsis is the line in dbops -help.
func (auditCommand) Synopsis() string { return "Verify and search Vault's audit files" }

// Help is the whole help; the library lists the children below it.
func (auditCommand) Help() string {
	return `Usage: dbops audit <command> [options]

  Works on the files of Vault's audit devices, which are the record of all events.`
}

// Run shows the help.
func (auditCommand) Run([]string) int { return cli.RunResultHelp }
