package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// exitUsage is the exit code of a wrong command line.
var exitUsage = wire.CodeUsage.Info().Exit

// Output formats.
const (
	formatTable = "table"
	formatJSON  = "json"
)

// console is the world of a command: where it prints and what interrupts it.
type console struct {
	stdout, stderr io.Writer
	terminal       bool      // stdout is one
	answers        io.Reader // who can be asked; nil: nobody
	home           string
	version        string
	signals        <-chan os.Signal
}

// vaultFlags are the options of every command that talks to Vault.
type vaultFlags struct {
	mount, address, namespace, format string
}

func (f *vaultFlags) register(set *flag.FlagSet) {
	set.StringVar(&f.mount, "mount", wire.DefaultMount, "`Path` at which dbops is mounted.")
	set.StringVar(&f.address, "address", "", "`URL` of Vault, instead of VAULT_ADDR.")
	set.StringVar(&f.namespace, "namespace", "", "`Name` of the namespace, instead of VAULT_NAMESPACE.")
	registerFormat(set, &f.format)
}

// options are those a printed dbops command needs to reach the same mount, each after a
// blank; there are none where it is the default one of the default Vault.
func (f vaultFlags) options() string {
	if mount := f.mountPath(); mount != wire.DefaultMount {
		return " -mount=" + shellWord(mount) + f.vaultOptions()
	}
	return f.vaultOptions()
}

// vaultOptions are those of them that a printed vault command needs.
func (f vaultFlags) vaultOptions() string {
	var options string
	if f.namespace != "" {
		options += " -namespace=" + shellWord(f.namespace)
	}
	if f.address != "" {
		options += " -address=" + shellWord(f.address)
	}
	return options
}

// mountPath is where dbops is mounted.
func (f vaultFlags) mountPath() string {
	if mount := strings.Trim(f.mount, "/"); mount != "" {
		return mount
	}
	return wire.DefaultMount
}

// below is a path of the mount, for a printed vault command.
func (f vaultFlags) below(path string) string { return shellWord(f.mountPath()) + "/" + path }

// commands is a hint of the plugin or of ours, which speak of the default mount, with
// commands that reach this one.
func (f vaultFlags) commands(hint string) string {
	if f.options() == "" {
		return hint
	}
	hint = hintedDBOps.ReplaceAllStringFunc(hint, func(command string) string { return command + f.options() })
	return hintedVault.ReplaceAllStringFunc(hint, func(command string) string {
		parts := hintedVault.FindStringSubmatch(command)
		return parts[1] + f.vaultOptions() + parts[2] + f.below("")
	})
}

var (
	hintedDBOps = regexp.MustCompile(`\bdbops (?:approve|operations?|plan|posture|receipt|reject|setup|unlock)\b`)
	hintedVault = regexp.MustCompile(`\b(vault (?:read|write))((?: -\S+)* )` + wire.DefaultMount + "/")
)

// shellWord is text as a shell takes it for one word.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[\w./:@%+,=-]+$`)

func registerFormat(set *flag.FlagSet, format *string) {
	set.StringVar(format, "format", formatTable, "`Form` of the output: table for people, json for programs.")
}

func checkFormat(format string) error {
	if format != formatTable && format != formatJSON {
		return usageError("-format is %q; it must be table or json", format)
	}
	return nil
}

// dial checks the options and makes the client.
func (c *console) dial(f vaultFlags) (*vault.Client, error) {
	return vault.DialUser(vault.Config{
		Address: f.address, Namespace: f.namespace, Mount: f.mount, UserAgent: "dbops/" + c.version,
	}, c.home)
}

// dialAbout reads the options and the id of a command about one operation, has the
// rest checked if there is a rest, and makes the client.
func (c *console) dialAbout(set *flag.FlagSet, f *vaultFlags, args []string, check func(id string) error) (*vault.Client, string, error) {
	words, err := parse(set, args, "id")
	if err != nil {
		return nil, "", err
	}
	id := words[0]
	if !connectionName.MatchString(id) {
		return nil, "", usageError("%q is no operation's id", id)
	}
	if check != nil {
		if err := check(id); err != nil {
			return nil, "", err
		}
	}
	client, err := c.dial(*f)
	return client, id, err
}

// registerAll is the option of commands that may look beyond one's own operations.
func registerAll(set *flag.FlagSet, all *bool) {
	set.BoolVar(all, "all", false, "Look among everybody's; needs the ACL policy of an operator or auditor.")
}

// among asks about one's own operations, or about everybody's.
func among(client *vault.Client, all bool) *vault.Requester {
	if all {
		return vault.NewOverseer(client)
	}
	return vault.NewRequester(client)
}

// newFlags makes an empty set of options that prints nothing by itself.
func newFlags(command string) *flag.FlagSet {
	set := flag.NewFlagSet(command, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	return set
}

// parse reads options and arguments in any order and checks the number of
// arguments, and -format where the command has it.
func parse(set *flag.FlagSet, args []string, names ...string) ([]string, error) {
	words, err := parseAny(set, args)
	if err != nil {
		return nil, err
	}
	switch {
	case len(words) < len(names):
		return nil, usageError("<%s> is missing", names[len(words)])
	case len(words) > len(names):
		return nil, usageError("unexpected argument %q", words[len(names)])
	}
	if format := set.Lookup("format"); format != nil {
		return words, checkFormat(format.Value.String())
	}
	return words, nil
}

// parseAny reads options and any number of arguments, in any order.
func parseAny(set *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := set.Parse(args); err != nil {
			return nil, usageError("%v", err)
		}
		if set.NArg() == 0 {
			return words, nil
		}
		words, args = append(words, set.Arg(0)), set.Args()[1:]
	}
}

func usageError(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeUsage, Reason: fmt.Sprintf(format, args...)}
}

// optionsHelp renders the options of a command for its help.
func optionsHelp(set *flag.FlagSet) string {
	var b strings.Builder
	b.WriteString("\n\nOptions:\n")
	set.VisitAll(func(f *flag.Flag) {
		value, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "\n  -%s", f.Name)
		if value != "" {
			fmt.Fprintf(&b, "=<%s>", strings.ToLower(value))
		}
		fmt.Fprintf(&b, "\n      %s", strings.ReplaceAll(usage, "\n", "\n      "))
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(&b, " (default: %s)", f.DefValue)
		}
		b.WriteString("\n")
	})
	return strings.TrimRight(b.String(), "\n")
}

// failure is the JSON form of an error.
type failure struct {
	Type    string     `json:"type"` // "error"
	Code    wire.Code  `json:"code"`
	Reason  string     `json:"reason"`
	Field   string     `json:"field,omitempty"`
	Policy  string     `json:"policy,omitempty"`
	Rule    string     `json:"rule,omitempty"`
	Hint    string     `json:"hint,omitempty"`
	RetryAt *time.Time `json:"retry_at,omitempty"`
	Exit    int        `json:"exit"`
}

// fail tells an error in the form asked for and returns the exit code.
func (c *console) fail(command string, at vaultFlags, err error) int {
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(c.stderr, "Interrupted.")
		return wire.ExitInterrupted
	}
	var known *wire.Error
	if !errors.As(err, &known) {
		known = &wire.Error{Code: wire.CodeInternal, Reason: err.Error()}
	}
	exit := known.Code.Info().Exit
	if at.format == formatJSON {
		f := failure{
			Type: "error", Code: known.Code, Reason: known.Reason, Field: known.Field, Policy: known.Policy,
			Rule: known.Rule, Hint: at.commands(known.Hint), Exit: exit,
		}
		if !known.RetryAt.IsZero() {
			f.RetryAt = &known.RetryAt
		}
		c.printJSON(f)
		return exit
	}
	// Reasons may hold the words of others, such as of who locked the mount down.
	fmt.Fprintf(c.stderr, "Error: %s (%s)\n", plainLines(known.Reason), plain(string(known.Code)))
	tell := func(name, value string) {
		if value != "" {
			fmt.Fprintf(c.stderr, "  %-8s %s\n", name, plainLines(value))
		}
	}
	tell("field", known.Field)
	tell("policy", known.Policy)
	tell("rule", known.Rule)
	tell("hint", at.commands(known.Hint))
	if !known.RetryAt.IsZero() {
		tell("retry at", known.RetryAt.Local().Format(time.RFC1123))
	}
	if known.Code == wire.CodeUsage {
		fmt.Fprintf(c.stderr, "Run dbops %s -help for its options.\n", command)
	}
	return exit
}

// printJSON prints one line.
func (c *console) printJSON(value any) {
	encoder := json.NewEncoder(c.stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		fmt.Fprintf(c.stderr, "Error: print: %v\n", err)
	}
}

// interruptible returns a context that ends with the first signal.
func (c *console) interruptible() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-c.signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
