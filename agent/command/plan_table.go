package command

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// shownPlan is what people are shown of a plan. Engines may plan more; the digest
// covers all of it, and -format=json prints it.
type shownPlan struct {
	Shape struct {
		wire.ShapeHead
		Action     string `json:"target_action"`
		Replaced   string `json:"replaced_owner"`
		Extensions []struct {
			Name          string `json:"name"`
			Version       string `json:"version"`
			TargetVersion string `json:"target_version"`
		} `json:"extensions"`
		Tables  []shownTable `json:"table_list"`
		Objects []struct {
			Kind string `json:"kind"`
		} `json:"objects"`
		NotCopied []struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
			Why  string `json:"why"`
		} `json:"not_copied"`
	} `json:"shape"`
	Estimates wire.Estimates      `json:"estimates"`
	Logins    []wire.PlannedLogin `json:"logins"`
}

type shownTable struct {
	Schema      string        `json:"schema"`
	Name        string        `json:"name"`
	Kind        string        `json:"kind"`
	RowSecurity bool          `json:"row_security"`
	Treatment   string        `json:"treatment"`
	Why         string        `json:"why"`
	Columns     []shownColumn `json:"columns"`
}

type shownColumn struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	NotNull   bool   `json:"not_null"`
	Identity  string `json:"identity"`
	Generated bool   `json:"generated"`
	Default   string `json:"default"`
}

// printPlan writes a plan as tables, its digest last, and how to approve it where
// that is wanted.
func printPlan(w io.Writer, at vaultFlags, op wire.Operation, text, digest string) error {
	var p shownPlan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var b strings.Builder
	p.printHead(&b, op)
	p.printTables(&b)
	p.printRest(&b)
	p.printLogins(&b)
	fmt.Fprintf(&b, "\nDigest: %s (checked)\n", digest)
	if needs := needsText(op); needs != "" {
		fmt.Fprintf(&b, "\nIt waits for approval: %[1]s.\n\n  dbops approve%[2]s -plan-digest=%[3]s %[4]s\n  dbops reject%[2]s -reason=… %[4]s\n",
			plain(needs), plain(at.options()), digest, op.ID)
	}
	_, _ = io.WriteString(w, b.String()) // a terminal that is gone sees nothing anyway
	return nil
}

func (p *shownPlan) printHead(b *strings.Builder, op wire.Operation) {
	table := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(table, "%s\t%s\n", name, plain(value)) }
	row("Operation", op.ID)
	row("Requester", op.Requester.Name)
	if op.Reason != "" {
		row("Reason", op.Reason)
	}
	row("Kind", string(p.Shape.Kind))
	row("From", op.Source+": "+identityText(p.Shape.Source))
	row("Into", op.Target+": "+identityText(p.Shape.Target))
	switch {
	case p.Shape.Action == "replace" && p.Shape.Replaced != "":
		row("Target", "the database there is replaced; it belongs to "+p.Shape.Replaced)
	case p.Shape.Action != "":
		row("Target", p.Shape.Action)
	}
	row("Strategy", p.Shape.Strategy+": "+p.Shape.Why)
	// Those of the request are run by, whatever of them the agent's plan repeats.
	asked := map[string]string{}
	maps.Copy(asked, p.Shape.Options)
	maps.Copy(asked, op.Options)
	var options []string
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		options = append(options, name+"="+asked[name])
	}
	row("Options", strings.Join(options, " "))
	row("Estimate", fmt.Sprintf("%d tables, about %d rows, %s", p.Estimates.Tables, p.Estimates.Rows, sizeText(p.Estimates.Bytes)))
	flush(table)
}

func identityText(i wire.ServerIdentity) string {
	text := fmt.Sprintf("%s %s, database %s", i.Engine, i.Version, i.Database)
	if i.DatabaseID == "" {
		text += " (not there yet)"
	} else {
		text += " (" + i.DatabaseID + ")"
	}
	text += " of server " + i.Server
	if !i.TLS {
		text += ", NOT encrypted"
	}
	return text
}

func (p *shownPlan) printTables(b *strings.Builder) {
	if len(p.Shape.Tables) == 0 {
		return
	}
	b.WriteString("\n")
	table := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tKIND\tTREATMENT\tCOLUMN\tTYPE\tNOTES")
	for _, t := range p.Shape.Tables {
		treatment := t.Treatment
		if t.Treatment != "copy" && t.Why != "" {
			treatment += ": " + t.Why
		}
		kind := t.Kind
		if t.RowSecurity {
			kind += ", row security"
		}
		name := plain(t.Schema + "." + t.Name)
		if len(t.Columns) == 0 {
			fmt.Fprintf(table, "%s\t%s\t%s\t\t\t\n", name, plain(kind), plain(treatment))
		}
		for _, c := range t.Columns {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", name, plain(kind), plain(treatment), plain(c.Name), plain(c.Type), c.notes())
			name, kind, treatment = "", "", ""
		}
	}
	flush(table)
}

func (c shownColumn) notes() string {
	var notes []string
	if c.NotNull {
		notes = append(notes, "not null")
	}
	switch {
	case c.Generated:
		notes = append(notes, "generated")
	case c.Identity != "":
		notes = append(notes, "identity "+plain(c.Identity))
	case c.Default != "":
		notes = append(notes, "has a default")
	}
	return strings.Join(notes, ", ")
}

func (p *shownPlan) printRest(b *strings.Builder) {
	if len(p.Shape.Objects) > 0 {
		kinds := map[string]int{}
		for _, o := range p.Shape.Objects {
			kinds[o.Kind]++
		}
		var words []string
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			words = append(words, fmt.Sprintf("%d %s", kinds[kind], plain(kind)))
		}
		fmt.Fprintf(b, "\nFurther objects: %s\n", strings.Join(words, ", "))
	}
	for _, e := range p.Shape.Extensions {
		fmt.Fprintf(b, "Extension %s: %s there, %s here\n", plain(e.Name), plain(e.TargetVersion), plain(e.Version))
	}
	for _, n := range p.Shape.NotCopied {
		fmt.Fprintf(b, "Not copied: %s %s, %s\n", plain(n.Kind), plain(n.Name), plain(n.Why))
	}
}

// printLogins tells what the logins of the run are granted: the statements that make
// them, and those that end or renew them where a role has its own.
func (p *shownPlan) printLogins(b *strings.Builder) {
	for _, l := range p.Logins {
		fmt.Fprintf(b, "\nLogin to %s %s, by role %s", plain(string(l.Purpose)), plain(l.Connection), plain(l.Role))
		if l.Preset != "" {
			fmt.Fprintf(b, ", preset %s", plain(l.Preset))
		}
		b.WriteString(":\n")
		statements := func(what string, list []string) {
			for _, s := range list {
				for _, line := range strings.Split(s, "\n") {
					fmt.Fprintf(b, "  %s%s\n", what, plain(line))
				}
			}
		}
		statements("", l.Creation)
		statements("renewed by ", l.Renew)
		statements("ended by ", l.Revocation)
	}
}
