package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// setOwners gives the copied objects the owners they have at the source, when
// that was asked for. Until then everything belongs to the account's role, which
// has to read, index and describe it.
func (f *filling) setOwners(ctx context.Context, conn *pgx.Conn) error {
	if !f.options.keepOwner {
		return nil
	}
	rows, err := f.keeper.Query(ctx, `
SELECT i.type, i.identity, pg_catalog.pg_get_userbyid(o.owner) FROM (
  SELECT 0 AS rank, 'pg_catalog.pg_namespace'::regclass AS class, n.oid, n.nspowner AS owner FROM pg_catalog.pg_namespace n WHERE `+userSchema+`
  UNION ALL SELECT 1, 'pg_catalog.pg_class'::regclass, c.oid, c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE `+userSchema+` AND c.relpersistence <> 't' AND (c.relkind IN ('r', 'p', 'v', 'm', 'f')
     OR c.relkind = 'S' AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0))
  UNION ALL SELECT 2, 'pg_catalog.pg_proc'::regclass, p.oid, p.proowner FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
   WHERE `+userSchema+` AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'i')
  UNION ALL SELECT 2, 'pg_catalog.pg_type'::regclass, t.oid, t.typowner FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
   LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid WHERE `+userSchema+` AND (t.typrelid = 0 OR c.relkind = 'c') AND t.typtype <> 'm'
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_type e WHERE e.typarray = t.oid)
  UNION ALL SELECT 2, 'pg_catalog.pg_operator'::regclass, x.oid, x.oprowner FROM pg_catalog.pg_operator x JOIN pg_catalog.pg_namespace n ON n.oid = x.oprnamespace WHERE `+userSchema+` AND x.oprcode <> 0
  UNION ALL SELECT 2, 'pg_catalog.pg_opclass'::regclass, x.oid, x.opcowner FROM pg_catalog.pg_opclass x JOIN pg_catalog.pg_namespace n ON n.oid = x.opcnamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_opfamily'::regclass, x.oid, x.opfowner FROM pg_catalog.pg_opfamily x JOIN pg_catalog.pg_namespace n ON n.oid = x.opfnamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_collation'::regclass, x.oid, x.collowner FROM pg_catalog.pg_collation x JOIN pg_catalog.pg_namespace n ON n.oid = x.collnamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_conversion'::regclass, x.oid, x.conowner FROM pg_catalog.pg_conversion x JOIN pg_catalog.pg_namespace n ON n.oid = x.connamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_statistic_ext'::regclass, x.oid, x.stxowner FROM pg_catalog.pg_statistic_ext x JOIN pg_catalog.pg_namespace n ON n.oid = x.stxnamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_ts_dict'::regclass, x.oid, x.dictowner FROM pg_catalog.pg_ts_dict x JOIN pg_catalog.pg_namespace n ON n.oid = x.dictnamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_ts_config'::regclass, x.oid, x.cfgowner FROM pg_catalog.pg_ts_config x JOIN pg_catalog.pg_namespace n ON n.oid = x.cfgnamespace WHERE `+userSchema+`
  UNION ALL SELECT 2, 'pg_catalog.pg_language'::regclass, x.oid, x.lanowner FROM pg_catalog.pg_language x WHERE x.oid >= 16384
  UNION ALL SELECT 2, 'pg_catalog.pg_foreign_server'::regclass, x.oid, x.srvowner FROM pg_catalog.pg_foreign_server x
) o, LATERAL pg_catalog.pg_identify_object(o.class, o.oid, 0) i
 WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
 ORDER BY o.rank, o.oid`)
	if err != nil {
		return fault(wire.StepIndex, wire.Source, "read the owners", err)
	}
	var kind, identity, owner string
	_, err = pgx.ForEachRow(rows, []any{&kind, &identity, &owner}, func() error {
		if identity == "public" && kind == "schema" && strings.HasPrefix(owner, "pg_") {
			return nil // as in every new database
		}
		switch kind {
		case "composite type", "domain", "enum", "range":
			kind = "type"
		case "partitioned table":
			kind = "table"
		case "statistics object":
			kind = "statistics"
		case "aggregate":
			if bare, ok := strings.CutSuffix(identity, "()"); ok {
				identity = bare + "(*)"
			}
		}
		if err := execute(ctx, conn, "ALTER "+strings.ToUpper(kind)+" "+identity+" OWNER TO "+quote(owner)); err != nil {
			failed := fault(wire.StepIndex, wire.Target, "give "+kind+" "+identity+" to its owner", &sideError{wire.Target, err})
			if failed.Code == wire.CodePrivilege {
				failed.Hint = "make the write purpose's role a member of the source's owners, or use owner=stable"
			}
			return failed
		}
		return nil
	})
	if err != nil {
		return fault(wire.StepIndex, wire.Source, "read the owners", err)
	}
	return nil
}

// describeDatabase copies what belongs to the database itself: its grants and
// settings with acl=keep. Its comment and its owner are part of the switch.
func (c *clone) describeDatabase(ctx context.Context) error {
	if !c.options.keepACL {
		return nil
	}
	staging := quote(c.names.staging)
	rows, err := c.keeper.Query(ctx, `
SELECT pg_catalog.format('GRANT %s ON DATABASE %s TO %s%s', a.privilege_type, $1::text,
         CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a WHERE d.datname = pg_catalog.current_database() AND a.grantee <> d.datdba`, staging)
	if err != nil {
		return fault(wire.StepIndex, wire.Source, "read the database's grants", err)
	}
	grants, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fault(wire.StepIndex, wire.Source, "read the database's grants", err)
	}
	var own bool
	if err := c.keeper.QueryRow(ctx, `SELECT datacl IS NOT NULL FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()`).Scan(&own); err != nil {
		return fault(wire.StepIndex, wire.Source, "read the database's grants", err)
	}
	if own {
		grants = append([]string{"REVOKE ALL ON DATABASE " + staging + " FROM PUBLIC"}, grants...)
	}
	for _, statement := range grants {
		if err := execute(ctx, c.admin, statement); err != nil {
			return fault(wire.StepIndex, wire.Target, "grant on the database", err)
		}
	}
	rows, err = c.keeper.Query(ctx, `
SELECT s FROM pg_catalog.pg_db_role_setting r, pg_catalog.unnest(r.setconfig) s
 WHERE r.setrole = 0 AND r.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())`)
	if err != nil {
		return fault(wire.StepIndex, wire.Source, "read the database's settings", err)
	}
	settings, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fault(wire.StepIndex, wire.Source, "read the database's settings", err)
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		if err := execute(ctx, c.admin, fmt.Sprintf("ALTER DATABASE %s SET %s TO %s", staging, settingName(name), settingValue(name, value))); err != nil {
			failed := fault(wire.StepIndex, wire.Target, "set "+name+" for the database", err)
			if failed.Code == wire.CodePrivilege {
				failed.Hint = "only a superuser may set this; remove it from the source or use acl=drop"
			}
			return failed
		}
	}
	return nil
}

// settingName quotes the parts of a setting's name, which may have a prefix.
func settingName(name string) string {
	parts := strings.Split(name, ".")
	for i := range parts {
		parts[i] = quote(parts[i])
	}
	return strings.Join(parts, ".")
}

// settingValue writes a value. Lists of names are kept as the server quotes
// them; as one constant they would become one name.
func settingValue(name, value string) string {
	switch strings.ToLower(name) {
	case "search_path", "local_preload_libraries", "session_preload_libraries", "temp_tablespaces":
	default:
		return literal(value)
	}
	var list []string
	for rest := value; ; {
		item, after, more := nextName(rest)
		if item != "" || !more && len(list) == 0 {
			list = append(list, literal(item))
		}
		if !more {
			return strings.Join(list, ", ")
		}
		rest = after
	}
}

// nextName takes the first name off a comma-separated list of names that may be
// quoted.
func nextName(text string) (name, rest string, more bool) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, `"`) {
		name, rest, more = strings.Cut(text, ",")
		return strings.TrimSpace(name), rest, more
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] != '"' {
			b.WriteByte(text[i])
			continue
		}
		if i+1 < len(text) && text[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		_, rest, more = strings.Cut(text[i+1:], ",")
		return b.String(), rest, more
	}
	return b.String(), "", false
}
