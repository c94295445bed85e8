package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Table is one relation that has rows or a place among them.
type Table struct {
	Schema      string   `json:"schema"`
	Name        string   `json:"name"`
	Kind        string   `json:"kind"` // table, partitioned, foreign
	Partition   bool     `json:"partition,omitempty"`
	Parents     []string `json:"parents,omitempty"`
	RowSecurity bool     `json:"row_security,omitempty"`
	// Extension names the extension whose configuration table this is; then only
	// rows that meet its condition are the user's, and are copied.
	Extension string   `json:"extension,omitempty"`
	Condition string   `json:"condition,omitempty"` // digest of it
	Columns   []Column `json:"columns"`
	// UnsafeHash: a hash partition whose key hashes differently in every
	// database (an enum).
	UnsafeHash bool `json:"unsafe_hash,omitempty"`

	// Rows and Bytes are the server's own estimates; not part of a shape.
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`

	oid       uint32
	condition string // of the extension's configuration, an SQL expression
	parents   []uint32
}

func (t *Table) qualified() string { return t.Schema + "." + t.Name }
func (t *Table) quoted() string    { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// copies reports whether rows of t are copied as such.
func (t *Table) copies() bool { return t.Kind == "table" }

// Column is one column of a [Table].
type Column struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	Collation string `json:"collation,omitempty"`
	NotNull   bool   `json:"not_null,omitempty"`
	Identity  string `json:"identity,omitempty"`  // always, by default
	Generated bool   `json:"generated,omitempty"` // its expression is the default
	Default   string `json:"default,omitempty"`   // digest of the expression

	typeOID uint32
}

// Object is one thing of the catalogs that is not a table or a column, with its
// definition reduced to a digest: definitions hold literals.
type Object struct {
	Kind     string `json:"kind"`
	Identity string `json:"identity"`
	Owner    string `json:"owner,omitempty"`
	Digest   string `json:"digest"`
	// Roles are those its definition names (policies, grants).
	Roles []string `json:"roles,omitempty"`

	definition string
}

func (o *Object) key() string { return o.Kind + "\x00" + o.Identity }

// Extension is an installed extension.
type Extension struct {
	Name    string `json:"name"`
	Schema  string `json:"schema"`
	Version string `json:"version"`
}

// catalog is what one database holds, with the parts that never leave the
// worker.
type catalog struct {
	major      int
	Tables     []Table
	Objects    []Object
	Extensions []Extension
	NotCopied  []Loss

	indexTable map[uint32]uint32 // index oid → table oid
	constraint map[uint32]constraint
	sequences  []sequence
}

type constraint struct {
	kind               string // pg_constraint.contype
	name               string
	table, referenced  uint32
	index              uint32
	deferrable, defers bool
	indexDefinition    string // for keys of plain tables that an index built apart can become
	indexName          string
}

type sequence struct {
	oid          uint32
	schema, name string
}

// Loss is something a clone leaves behind.
type Loss struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Why  string `json:"why"`
}

// literalDigest hides a definition and still tells two apart.
func literalDigest(text string) string {
	if text == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// userSchema is the condition on pg_namespace n that leaves out what belongs to
// the server itself; member leaves out what an extension brings.
const userSchema = `n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'`

func member(class, oid string) string {
	return `EXISTS (SELECT 1 FROM pg_catalog.pg_depend x WHERE x.classid = 'pg_catalog.` + class +
		`'::regclass AND x.objid = ` + oid + ` AND x.deptype = 'e')`
}

// readCatalog reads what the session's database holds, from the catalogs alone.
// Inside a transaction with a snapshot it sees that snapshot's state, but for
// the server's own functions that write definitions: tables must be locked.
func readCatalog(ctx context.Context, conn *pgx.Conn) (*catalog, error) {
	c := &catalog{
		major:      versionOf(conn) / 10000,
		indexTable: map[uint32]uint32{}, constraint: map[uint32]constraint{},
	}
	for _, part := range []func(context.Context, *pgx.Conn) error{
		c.readExtensions, c.readTables, c.readColumns, c.readObjects, c.readGrants, c.readComments,
		c.readConstraints, c.readSequences, c.readLosses,
	} {
		if err := part(ctx, conn); err != nil {
			return nil, err
		}
	}
	sort.Slice(c.Tables, func(i, j int) bool { return c.Tables[i].less(&c.Tables[j]) })
	sort.Slice(c.Objects, func(i, j int) bool { return c.Objects[i].key() < c.Objects[j].key() })
	for i := range c.Objects {
		c.Objects[i].Digest = literalDigest(c.Objects[i].definition)
		sort.Strings(c.Objects[i].Roles)
	}
	sort.Slice(c.NotCopied, func(i, j int) bool {
		a, b := c.NotCopied[i], c.NotCopied[j]
		return a.Kind < b.Kind || a.Kind == b.Kind && a.Name < b.Name
	})
	return c, nil
}

func (t *Table) less(o *Table) bool {
	return t.Schema < o.Schema || t.Schema == o.Schema && t.Name < o.Name
}

func (c *catalog) readExtensions(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT e.extname, n.nspname, e.extversion FROM pg_catalog.pg_extension e
		JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace ORDER BY e.extname COLLATE "C"`)
	if err != nil {
		return err
	}
	c.Extensions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Extension])
	return err
}

func (c *catalog) readTables(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relispartition, c.relrowsecurity,
       coalesce((SELECT array_agg(i.inhparent::regclass::text ORDER BY i.inhseqno) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid), '{}'),
       coalesce((SELECT array_agg(i.inhparent::int8 ORDER BY i.inhseqno) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid), '{}'),
       CASE WHEN c.reltuples > 0 THEN c.reltuples::int8 ELSE 0 END,
       CASE WHEN c.relkind = 'r' THEN coalesce(pg_catalog.pg_table_size(c.oid), 0) ELSE 0 END,
       coalesce(e.extname, ''), coalesce(e.condition, ''),
       EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = i.inhparent
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs)
                 JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
                WHERE i.inhrelid = c.oid AND c.relispartition AND p.partstrat = 'h' AND y.typtype = 'e')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN LATERAL (
       SELECT e.extname, e.extcondition[pg_catalog.array_position(e.extconfig, c.oid)] AS condition
         FROM pg_catalog.pg_extension e WHERE c.oid = ANY (e.extconfig)) e ON true
 WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
   AND (e.extname IS NOT NULL OR (`+userSchema+` AND NOT `+member("pg_class", "c.oid")+`))`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			t       Table
			kind    string
			parents []int64
		)
		err := rows.Scan(&t.oid, &t.Schema, &t.Name, &kind, &t.Partition, &t.RowSecurity, &t.Parents, &parents,
			&t.Rows, &t.Bytes, &t.Extension, &t.condition, &t.UnsafeHash)
		if err != nil {
			return err
		}
		for _, parent := range parents {
			t.parents = append(t.parents, uint32(parent))
		}
		t.Condition = literalDigest(t.condition)
		switch kind {
		case "p":
			t.Kind = "partitioned"
		case "f":
			t.Kind = "foreign"
		default:
			t.Kind = "table"
		}
		if len(t.Parents) == 0 {
			t.Parents = nil
		}
		c.Tables = append(c.Tables, t)
	}
	return rows.Err()
}

func (c *catalog) readColumns(ctx context.Context, conn *pgx.Conn) error {
	at := make(map[uint32]*Table, len(c.Tables))
	for i := range c.Tables {
		at[c.Tables[i].oid] = &c.Tables[i]
	}
	// Attributes that decide how a value is kept are compared as an object each;
	// positions are not: inheritance moves columns in a copy. Of the options only
	// those a user can set count; some builds keep numbers of their own there
	// (pg_attver), which differ in every database.
	compression := `''`
	if c.major >= 14 {
		compression = `a.attcompression::text`
	}
	rows, err := conn.Query(ctx, `
SELECT c.oid, c.relkind::text, n.nspname, c.relname, a.attname, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod),
       coalesce(CASE WHEN a.attcollation <> y.typcollation THEN a.attcollation::regcollation::text END, ''),
       a.attnotnull, a.attidentity::text, a.attgenerated::text, coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), ''),
       a.attstorage::text,
       pg_catalog.array_to_string(ARRAY(SELECT o FROM pg_catalog.unnest(a.attoptions) o WHERE o LIKE 'n\_distinct%' ORDER BY o), ','),
       coalesce(pg_catalog.array_to_string(a.attfdwoptions, ','), ''),
       `+compression+`,
       CASE WHEN coalesce(a.attstattarget, -1) < 0 THEN '' ELSE a.attstattarget::text END
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') AND c.relpersistence <> 't'
   AND ((`+userSchema+`) OR c.oid = ANY (SELECT unnest(e.extconfig) FROM pg_catalog.pg_extension e))
   AND (c.oid = ANY (SELECT unnest(e.extconfig) FROM pg_catalog.pg_extension e) OR NOT `+member("pg_class", "c.oid")+`)
 ORDER BY a.attrelid, a.attnum`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			relation                                             uint32
			kind, schema, table, identity, generated, expression string
			storage, options, foreign, compress, target          string
			column                                               Column
		)
		err := rows.Scan(&relation, &kind, &schema, &table, &column.Name, &column.typeOID, &column.Type, &column.Collation,
			&column.NotNull, &identity, &generated, &expression, &storage, &options, &foreign, &compress, &target)
		if err != nil {
			return err
		}
		switch identity {
		case "a":
			column.Identity = "always"
		case "d":
			column.Identity = "by default"
		}
		column.Generated = generated != ""
		column.Default = literalDigest(expression)
		t := at[relation]
		if t != nil {
			t.Columns = append(t.Columns, column)
			if t.Extension != "" {
				continue // the extension's own definition, its version decides
			}
		}
		c.Objects = append(c.Objects, Object{
			Kind: "column", Identity: pgx.Identifier{schema, table, column.Name}.Sanitize(),
			definition: joinParts(column.Type, column.Collation, fmt.Sprint(column.NotNull), identity, generated, expression,
				storage, options, foreign, compress, target),
		})
	}
	return rows.Err()
}

// flat writes out the parts of a JSON array, so that the SQL in them stands as
// such and not inside a string.
func flat(definition string) string {
	var parts []any
	if !strings.HasPrefix(definition, "[") || json.Unmarshal([]byte(definition), &parts) != nil {
		return definition
	}
	text := make([]string, len(parts))
	for i, part := range parts {
		switch part := part.(type) {
		case []any:
			inner, err := json.Marshal(part)
			if err != nil {
				return definition
			}
			text[i] = flat(string(inner))
		case nil:
		default:
			text[i] = fmt.Sprint(part)
		}
	}
	return joinParts(text...)
}

func joinParts(parts ...string) string { return strings.Join(parts, "\x1f") }

// readObjects reads everything that has a definition of its own.
func (c *catalog) readObjects(ctx context.Context, conn *pgx.Conn) error {
	for _, q := range objectQueries() {
		rows, err := conn.Query(ctx, q.sql)
		if err != nil {
			return fmt.Errorf("read %s: %w", q.kind, err)
		}
		var (
			o          Object
			owner      *string
			definition *string
		)
		_, err = pgx.ForEachRow(rows, []any{&o.Identity, &owner, &definition, &o.Roles}, func() error {
			next := o
			next.Kind = q.kind
			if owner != nil {
				next.Owner = *owner
			}
			if definition != nil {
				next.definition = flat(*definition)
			}
			if len(next.Roles) == 0 {
				next.Roles = nil
			}
			c.Objects = append(c.Objects, next)
			return nil
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", q.kind, err)
		}
	}
	return nil
}

func (c *catalog) readConstraints(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT i.indexrelid, i.indrelid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE `+userSchema)
	if err != nil {
		return err
	}
	var index, table uint32
	if _, err := pgx.ForEachRow(rows, []any{&index, &table}, func() error { c.indexTable[index] = table; return nil }); err != nil {
		return err
	}
	period := ""
	if c.major >= 18 {
		period = "AND NOT o.conperiod" // WITHOUT OVERLAPS
	}
	rows, err = conn.Query(ctx, `
SELECT o.oid, o.contype::text, o.conname, o.conrelid, o.confrelid, o.conindid, o.condeferrable, o.condeferred,
       coalesce(x.relname, ''),
       CASE WHEN o.contype IN ('p', 'u') AND c.relkind = 'r' AND a.amname = 'btree' `+period+`
            THEN pg_catalog.pg_get_indexdef(o.conindid) ELSE '' END
  FROM pg_catalog.pg_constraint o JOIN pg_catalog.pg_class c ON c.oid = o.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_class x ON x.oid = o.conindid LEFT JOIN pg_catalog.pg_am a ON a.oid = x.relam
 WHERE `+userSchema)
	if err != nil {
		return err
	}
	var (
		oid uint32
		k   constraint
	)
	_, err = pgx.ForEachRow(rows, []any{&oid, &k.kind, &k.name, &k.table, &k.referenced, &k.index, &k.deferrable, &k.defers, &k.indexName, &k.indexDefinition},
		func() error { c.constraint[oid] = k; return nil })
	return err
}

func (c *catalog) readSequences(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't'
   AND (c.oid = ANY (SELECT unnest(e.extconfig) FROM pg_catalog.pg_extension e)
        OR (`+userSchema+` AND NOT `+member("pg_class", "c.oid")+`))
 ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`)
	if err != nil {
		return err
	}
	var s sequence
	_, err = pgx.ForEachRow(rows, []any{&s.oid, &s.schema, &s.name}, func() error { c.sequences = append(c.sequences, s); return nil })
	return err
}
