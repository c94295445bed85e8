package command

import (
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/cli"
	"golang.org/x/term"
)

// RunCLI is the dbops program: it runs the command that args name (without the
// program's own name) and returns the exit code. Codes are those of
// wire.Code.Info, and 130 after an interrupt.
func RunCLI(args []string, version string) int {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // only matters without VAULT_TOKEN, and is said then
	}
	c := &console{
		stdout: os.Stdout, stderr: os.Stderr, home: home, version: version, signals: signals,
		terminal: term.IsTerminal(int(os.Stdout.Fd())),
	}
	if c.terminal && term.IsTerminal(int(os.Stdin.Fd())) {
		c.answers = os.Stdin
	}
	return runCLI(args, c)
}

func runCLI(args []string, c *console) int {
	commands := cliCommands(c)
	program := &cli.CLI{
		Name: "dbops", Version: "dbops " + c.version, Args: args, HelpWriter: c.stdout, ErrorWriter: c.stderr,
		HelpFunc: func(map[string]cli.CommandFactory) string { return cliHelp(commands) },
		Commands: make(map[string]cli.CommandFactory, len(commands)),
	}
	for name, command := range commands {
		program.Commands[name] = func() (cli.Command, error) { return command, nil }
	}
	code, err := program.Run()
	if err != nil {
		fmt.Fprintf(c.stderr, "Error: %v\n", err)
		return exitUsage
	}
	if code == 127 { // the library's word for no such command
		return exitUsage
	}
	return code
}

func cliCommands(c *console) map[string]cli.Command {
	commands := map[string]cli.Command{
		"clone":      &cloneCommand{console: c},
		"operations": &operationsCommand{console: c},
		"operation":  &operationCommand{console: c},
		"plan":       &planCommand{console: c},
		"posture":    &postureCommand{console: c},
		"receipt":    &receiptCommand{console: c},
		"lockdown":   &lockdownCommand{console: c},
		"unlock":     &unlockCommand{console: c},
		"approve":    &approveCommand{console: c},
		"reject":     &rejectCommand{console: c},
		"setup":      &setupCommand{console: c},
		"acl":        &aclCommand{console: c},
		"audit":      auditCommand{},
		"version":    &versionCommand{console: c},
	}
	// Commands of a command are listed in its own help.
	commands["receipt verify"] = &receiptVerifyCommand{console: c}
	maps.Copy(commands, auditCommands(c))
	return commands
}

// cliHelp is what dbops -help prints.
func cliHelp(commands map[string]cli.Command) string {
	names := make([]string, 0, len(commands))
	for name := range commands {
		if !strings.Contains(name, " ") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteString("Usage: dbops <command> [options]\n\n" +
		"  Clones databases by way of Vault, without a standing password.\n" +
		"  Works against VAULT_ADDR with the token of vault login.\n\nCommands:\n")
	for _, name := range names {
		fmt.Fprintf(&b, "    %-12s%s\n", name, commands[name].Synopsis())
	}
	b.WriteString("\nRun dbops <command> -help for its options and an example.")
	return b.String()
}
