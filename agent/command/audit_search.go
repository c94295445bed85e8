package command

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/auditlog"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// auditSearchCommand finds events and facts in audit files.
type auditSearchCommand struct {
	auditFiles
	filter       auditlog.Filter
	severity     string
	since, until string
}

var _ cli.Command = (*auditSearchCommand)(nil)

func (s *auditSearchCommand) flags() *flag.FlagSet {
	set := newFlags("audit search")
	s.register(set)
	set.StringVar(&s.filter.Operation, "operation", "", "`Id` of an operation.")
	set.StringVar(&s.filter.Agent, "agent", "", "`Name` of an agent.")
	set.StringVar(&s.filter.User, "user", "", "`Entity` that asked, its id or its name.")
	set.StringVar(&s.filter.Connection, "connection", "", "`Name` of a connection, as source or target.")
	set.StringVar(&s.filter.Type, "type", "", "`Type` of event, or a class of the guide's, such as authorization.")
	set.StringVar(&s.severity, "severity", "", "`Severity` and above: info, warning, error or critical.")
	set.StringVar(&s.filter.Outcome, "outcome", "", "`Outcome`: started, success, failure or denied.")
	set.StringVar(&s.since, "since", "", "`Time` from which on, as in 2026-11-26T12:00:00Z, or how long ago, as in 24h.")
	set.StringVar(&s.until, "until", "", "`Time` before which.")
	set.BoolVar(&s.filter.All, "all", false, "Also what does not count: refused, forged, or written elsewhere.")
	return set
}

// Synopsis is the line in dbops -help.
func (*auditSearchCommand) Synopsis() string { return "Find events in audit files" }

// Help is the whole help.
func (s *auditSearchCommand) Help() string {
	return `Usage: dbops audit search [options] <file>...

  Shows events and facts that all the given conditions fit, each once. Only entries
  that count are looked at, by the rules of dbops audit verify, which also says
  whether any are missing.
` + auditFilesHelp + `
      $ dbops audit search -connection=prod -severity=warning -since=24h /var/log/vault/audit.log` + optionsHelp(s.flags())
}

// Run searches.
func (s *auditSearchCommand) Run(args []string) int {
	ctx, stop := s.console.interruptible()
	defer stop()
	anchors, inputs, err := s.read(ctx, s.flags(), args)
	if err == nil {
		err = s.conditions(time.Now())
	}
	if err != nil {
		return s.console.fail("audit search", s.vault, err)
	}
	show, done := s.printer()
	if _, err := auditlog.Search(ctx, anchors, inputs, s.filter, show); err != nil {
		return s.console.fail("audit search", s.vault, err)
	}
	if err := done(); err != nil {
		return s.console.fail("audit search", s.vault, err)
	}
	return 0
}

// conditions checks what was given.
func (s *auditSearchCommand) conditions(now time.Time) (err error) {
	s.filter.Severity = wire.Severity(s.severity)
	switch {
	case s.severity != "" && s.filter.Severity.Level() < 0:
		return usageError("-severity is %q; it must be one of %v", s.severity, wire.Severities())
	case s.filter.Outcome != "" && !slices.Contains(wire.Outcomes(), s.filter.Outcome):
		return usageError("-outcome is %q; it must be one of %v", s.filter.Outcome, wire.Outcomes())
	case s.filter.Type != "" && !wire.ValidEventWord(s.filter.Type):
		return usageError("-type is %q; it must be one of %v or %v", s.filter.Type, wire.EventTypes(), wire.EventClasses())
	}
	if s.filter.Since, err = momentOf("since", s.since, now); err != nil {
		return err
	}
	s.filter.Until, err = momentOf("until", s.until, now)
	return err
}

// momentOf reads a time, or how long before now.
func momentOf(name, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usageError("-%s is %q; it must be a time as in 2026-11-26T12:00:00Z, or a duration as in 24h", name, text)
	}
	return at, nil
}

// rowsAtOnce are laid out together, so that a long search shows something early.
const rowsAtOnce = 500

// printer returns how to show one hit and what to do at the end.
func (s *auditSearchCommand) printer() (show func(auditlog.Hit) error, done func() error) {
	if s.vault.format == formatJSON {
		return func(h auditlog.Hit) error {
			s.console.printJSON(h)
			return nil
		}, func() error { return nil }
	}
	table := tabwriter.NewWriter(s.console.stdout, 0, 0, 2, ' ', 0)
	rows := 0
	return func(h auditlog.Hit) error {
			if rows == 0 {
				fmt.Fprintln(table, "TIME\tAGENT\tOPERATION\tEVENT\tSTEP\tOUTCOME\tSEVERITY\tWHAT\tUSER\tPLACE")
			}
			fmt.Fprintln(table, plainRow(hitRow(h)))
			if rows++; rows%rowsAtOnce == 0 {
				return table.Flush()
			}
			return nil
		}, func() error {
			if rows == 0 {
				fmt.Fprintln(s.console.stdout, "Nothing found.")
			}
			return table.Flush()
		}
}

// plainRow is a row of a table: what agents wrote must not steer a terminal.
func plainRow(cells []string) string {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = plain(cell)
	}
	return strings.Join(row, "\t")
}

func hitRow(h auditlog.Hit) []string {
	place := h.Place.String()
	if h.Standing != auditlog.Ours {
		place += " (" + string(h.Standing) + ")"
	}
	if x := h.Fact; x != nil {
		what := strings.Join(slices.DeleteFunc([]string{x.Connection, x.Role, x.Username, x.Object, string(x.Code), x.Detail}, func(word string) bool { return word == "" }), " ")
		return []string{x.T.Format(time.RFC3339), dash(x.Agent), dash(x.OpID), string(x.EventType), "-", x.Outcome, string(x.Severity), dash(what), dash(x.EntityID), place}
	}
	e := h.Event
	what := strings.Join(slices.DeleteFunc([]string{e.Object, string(e.Code)}, func(word string) bool { return word == "" }), " ")
	return []string{e.T.Format(time.RFC3339), e.Agent, e.OpID, string(e.EventType), dash(string(e.Phase)), e.Outcome, string(e.Severity), dash(what), e.User.Name, place}
}
