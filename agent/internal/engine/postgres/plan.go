package postgres

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Shape is the part of a plan that must not change until it is carried out.
type Shape struct {
	wire.ShapeHead
	Database   databaseShape    `json:"database"`
	Action     string           `json:"target_action"` // create or replace
	Replaced   string           `json:"replaced_owner,omitempty"`
	Extensions []extensionShape `json:"extensions"`
	Tables     []tableShape     `json:"table_list"`
	Objects    []Object         `json:"objects"`
	NotCopied  []Loss           `json:"not_copied"`
}

type databaseShape struct {
	Owner    string `json:"owner,omitempty"` // when owners are kept
	Encoding string `json:"encoding"`
	Collate  string `json:"collate"`
	CType    string `json:"ctype"`
	Provider string `json:"provider"`
	Locale   string `json:"locale,omitempty"`
	Rules    string `json:"rules,omitempty"`
}

type extensionShape struct {
	Extension
	// TargetVersion is what will be installed: the same, or the target's default
	// where the same is not to be had.
	TargetVersion string `json:"target_version"`
}

// tableShape is one table and how it is treated.
type tableShape struct {
	Schema      string   `json:"schema"`
	Name        string   `json:"name"`
	Kind        string   `json:"kind"`
	Parents     []string `json:"parents,omitempty"`
	RowSecurity bool     `json:"row_security,omitempty"`
	Extension   string   `json:"extension,omitempty"`
	Condition   string   `json:"condition,omitempty"`
	Columns     []Column `json:"columns"`
	// Treatment is copy, or none with the reason in Why.
	Treatment string `json:"treatment"`
	Format    format `json:"format,omitempty"`
	Why       string `json:"why,omitempty"`
}

// options are the clone's options with their defaults.
type options struct {
	keepOwner, keepACL, replace bool
	jobs                        int
}

func parseOptions(given map[string]string) (options, map[string]string, error) {
	full := map[string]string{
		wire.OptionOwner: "stable", wire.OptionACL: "drop", wire.OptionJobs: "2", wire.OptionReplace: "true",
	}
	for name, value := range given {
		if _, ok := full[name]; !ok {
			return options{}, nil, invalidOption(name, "is not an option of a clone")
		}
		full[name] = value
	}
	var o options
	choice := func(name, no, yes string, into *bool) error {
		switch full[name] {
		case no:
			*into = false
		case yes:
			*into = true
		default:
			return invalidOption(name, "must be "+no+" or "+yes)
		}
		return nil
	}
	if err := choice(wire.OptionOwner, "stable", "source", &o.keepOwner); err != nil {
		return options{}, nil, err
	}
	if err := choice(wire.OptionACL, "drop", "keep", &o.keepACL); err != nil {
		return options{}, nil, err
	}
	if err := choice(wire.OptionReplace, "false", "true", &o.replace); err != nil {
		return options{}, nil, err
	}
	jobs, err := strconv.Atoi(full[wire.OptionJobs])
	if err != nil || jobs < 1 || jobs > 16 {
		return options{}, nil, invalidOption(wire.OptionJobs, "must be a number from 1 to 16")
	}
	o.jobs = jobs
	full[wire.OptionJobs] = strconv.Itoa(jobs)
	return o, full, nil
}

func invalidOption(name, why string) error {
	return &operation.Error{Step: wire.StepPlan, Code: wire.CodeInvalid, Reason: fmt.Sprintf("option %q %s", name, why)}
}

func refuse(code wire.Code, hint, reason string, args ...any) error {
	return &operation.Error{Step: wire.StepPlan, Code: code, Reason: fmt.Sprintf(reason, args...), Hint: hint}
}

// Plan decides how target becomes a copy of source. Both are what Inspect
// answered.
func (e *Engine) Plan(kind wire.Kind, given map[string]string, source, target json.RawMessage) (wire.Plan, error) {
	if kind != wire.KindClone {
		return wire.Plan{}, refuse(wire.CodeUnsupported, "this version clones only", "operation %s of PostgreSQL databases", kind)
	}
	var from, to inspection
	if err := decodeInspection(source, &from); err != nil {
		return wire.Plan{}, err
	}
	if err := decodeInspection(target, &to); err != nil {
		return wire.Plan{}, err
	}
	return plan(given, &from, &to)
}

func decodeInspection(text json.RawMessage, into *inspection) error {
	if err := json.Unmarshal(text, into); err != nil || into.Format != inspectionFormat {
		return refuse(wire.CodeInternal, "", "an inspection cannot be read")
	}
	return nil
}

func plan(given map[string]string, from, to *inspection) (wire.Plan, error) {
	o, full, err := parseOptions(given)
	if err != nil {
		return wire.Plan{}, err
	}
	if err := decide(o, from, to); err != nil {
		return wire.Plan{}, err
	}
	shape := Shape{
		ShapeHead: wire.ShapeHead{
			Kind: wire.KindClone, Strategy: "stream",
			Why:    "copies between any two servers, from one snapshot, and is verified row by row",
			Source: from.Identity, Target: to.Identity, Tables: len(from.Tables), Options: full,
		},
		Database: databaseShape{
			Encoding: from.Database.Encoding, Collate: from.Database.Collate, CType: from.Database.CType,
			Provider: from.Database.Provider, Locale: from.Database.Locale, Rules: from.Database.Rules,
		},
		Action:     "create",
		Extensions: make([]extensionShape, 0, len(from.Extensions)),
		Tables:     make([]tableShape, 0, len(from.Tables)),
		Objects:    make([]Object, 0, len(from.Objects)),
		NotCopied:  append([]Loss{}, from.NotCopied...),
	}
	if o.keepOwner {
		shape.Database.Owner = from.Database.Owner
	}
	if to.Exists {
		shape.Action, shape.Replaced = "replace", to.Database.Owner
	}
	if shape.Extensions, err = planExtensions(from, to); err != nil {
		return wire.Plan{}, err
	}
	estimates := wire.Estimates{Tables: len(from.Tables)}
	for i := range from.Tables {
		t := &from.Tables[i]
		row, err := planTable(t, from, to)
		if err != nil {
			return wire.Plan{}, err
		}
		shape.Tables = append(shape.Tables, row)
		estimates.Rows += max(t.Rows, 0)
		estimates.Bytes += max(t.Bytes, 0)
	}
	for _, object := range from.Objects {
		if object.Kind == kindGrant && !o.keepACL {
			continue
		}
		if !o.keepOwner {
			object.Owner = ""
		}
		shape.Objects = append(shape.Objects, object)
	}
	if !o.keepACL {
		shape.NotCopied = append(shape.NotCopied, Loss{Kind: "grants", Name: "all", Why: "option acl=drop; settings of the database stay behind too"})
	}
	text, err := json.Marshal(shape)
	if err != nil {
		return wire.Plan{}, fmt.Errorf("encode shape: %w", err)
	}
	return wire.Plan{Version: 1, Shape: text, Estimates: estimates}, nil
}

// decide refuses what must not or cannot be done as a whole.
func decide(o options, from, to *inspection) error {
	switch {
	case !from.Exists:
		return refuse(wire.CodeSourceUnavailable, "", "the source database does not exist")
	case from.Identity.Same(to.Identity):
		return refuse(wire.CodeSameDatabase, "name another target", "source and target are one database")
	case from.Identity.Server == "" || to.Identity.Server == "":
		return refuse(wire.CodeUnsupported, "", "a server does not tell its identity")
	case to.Major < from.Major:
		return refuse(wire.CodeUnsupported, "upgrade the target server", "the target is PostgreSQL %d, older than the source's %d", to.Major, from.Major)
	case to.Exists && to.Database.Template:
		return refuse(wire.CodeConflict, "name another database on the target connection", "the target database is a template")
	case to.Exists && !o.replace:
		return refuse(wire.CodeConflict, "set replace=true, or name another database", "the target database exists")
	}
	known := make(map[string]bool, len(to.Roles))
	for _, role := range to.Roles {
		known[role] = true
	}
	var missing []string
	need := func(role string) {
		if role != "" && !known[role] && !strings.HasPrefix(role, "pg_") {
			known[role] = true
			missing = append(missing, role)
		}
	}
	if o.keepOwner {
		need(from.Database.Owner)
	}
	for i := range from.Objects {
		object := &from.Objects[i]
		if o.keepOwner {
			need(object.Owner)
		}
		if object.Kind == "policy" || object.Kind == kindGrant && o.keepACL {
			for _, role := range object.Roles {
				need(role)
			}
		}
	}
	if len(missing) > 0 {
		sort.Strings(missing)
		return refuse(wire.CodeUnsupported, "create them at the target, or use owner=stable and acl=drop; row security policies always need theirs",
			"roles are missing at the target: %s", strings.Join(missing, ", "))
	}
	return nil
}

func planExtensions(from, to *inspection) ([]extensionShape, error) {
	list := make([]extensionShape, 0, len(from.Extensions))
	for _, x := range from.Extensions {
		at := slices.IndexFunc(to.Available, func(a available) bool { return a.Name == x.Name })
		if at < 0 {
			return nil, refuse(wire.CodeUnsupported, "install the extension's package on the target server", "extension %s is not available at the target", x.Name)
		}
		planned := extensionShape{Extension: x, TargetVersion: to.Available[at].Default}
		if slices.Contains(to.Available[at].Versions, x.Version) {
			planned.TargetVersion = x.Version
		}
		list = append(list, planned)
	}
	return list, nil
}

func planTable(t *Table, from, to *inspection) (tableShape, error) {
	row := tableShape{
		Schema: t.Schema, Name: t.Name, Kind: t.Kind, Parents: t.Parents, RowSecurity: t.RowSecurity,
		Extension: t.Extension, Condition: t.Condition, Columns: t.Columns, Treatment: "none",
	}
	if row.Columns == nil {
		row.Columns = []Column{}
	}
	switch {
	case t.Kind == "partitioned":
		row.Why = "its partitions hold the rows"
	case t.Kind == "foreign":
		row.Why = "its rows live elsewhere"
	case t.UnsafeHash:
		return tableShape{}, refuse(wire.CodeUnsupported, "partition by another column, or detach it",
			"table %s is a hash partition by an enum, whose hash differs in every database", t.qualified())
	default:
		row.Treatment = "copy"
		row.Format, row.Why = chooseFormat(t, from, to)
	}
	return row, nil
}

// chooseFormat takes binary where every value is certain to mean the same at
// the target: built-in types without object ids inside, equal major versions,
// and no conversion of characters.
func chooseFormat(t *Table, from, to *inspection) (format, string) {
	switch {
	case from.Major != to.Major:
		return formatText, "major versions differ"
	case from.Database.Encoding != "UTF8" && from.Database.Encoding != "SQL_ASCII":
		return formatText, "encoding " + from.Database.Encoding
	}
	stored := 0
	for _, c := range t.Columns {
		if c.Generated {
			continue
		}
		stored++
		if !binarySafe(c.Type) {
			return formatText, "column type " + c.Type
		}
	}
	if stored == 0 {
		return formatText, "no column to copy"
	}
	return formatBinary, ""
}

// binarySafe reports whether values of the type, as format_type writes it, are
// the same bytes in every database. Enums, composites and domains are not in
// the list, and types that are object ids are not: those are text.
func binarySafe(name string) bool {
	name = strings.TrimSuffix(name, "[]")
	if open := strings.IndexByte(name, '('); open >= 0 {
		end := strings.IndexByte(name, ')')
		if end < open {
			return false
		}
		name = strings.TrimSpace(name[:open] + name[end+1:])
	}
	switch name {
	case "smallint", "integer", "bigint", "real", "double precision", "numeric", "boolean",
		"text", "character varying", "character", `"char"`, "name", "bytea", "uuid", "json", "jsonb",
		"date", "time without time zone", "time with time zone", "timestamp without time zone", "timestamp with time zone", "interval",
		"inet", "cidr", "macaddr", "macaddr8", "bit", "bit varying", "pg_lsn",
		"int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange",
		"point", "line", "lseg", "box", "path", "polygon", "circle", "tsvector":
		return true
	}
	return false
}
