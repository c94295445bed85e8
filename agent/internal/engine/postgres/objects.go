package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// objectQuery reads one kind of object: identity, owner, definition, roles.
type objectQuery struct{ kind, sql string }

// objectQueries lists the kinds. They read catalogs that every login may read,
// and no options that may hold secrets. What pg_dump does not dump is left out:
// invalid indexes, clones of triggers and keys on partitions.
func objectQueries() []objectQuery {
	const noRoles = `'{}'::text[]`
	user := func(class, alias string) string {
		return userSchema + ` AND ` + alias + `.oid >= 16384 AND NOT ` + member(class, alias+".oid")
	}
	loose := func(class string) string {
		return `o.oid >= 16384 AND NOT ` + member(class, "o.oid")
	}
	// Versions 17 (of domains) and 18 list NOT NULL as constraints; columns and types
	// say the same.
	const notNull = ` AND o.contype <> 'n'`
	return []objectQuery{
		{"schema", `SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.pg_get_userbyid(n.nspowner), '', ` + noRoles + `
  FROM pg_catalog.pg_namespace n WHERE ` + userSchema + ` AND NOT ` + member("pg_namespace", "n.oid")},

		{"relation", `SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.pg_get_userbyid(c.relowner),
 pg_catalog.jsonb_build_array(c.relkind, c.relpersistence, c.relispartition, c.relrowsecurity, c.relforcerowsecurity,
   CASE WHEN c.relkind IN ('r', 'm') THEN m.amname END, CASE WHEN c.relkind IN ('r', 'p', 'm') THEN c.relreplident END, c.reloptions,
   (SELECT t.reloptions FROM pg_catalog.pg_class t WHERE t.oid = c.reltoastrelid),
   CASE WHEN c.relkind = 'm' THEN c.relispopulated END,
   CASE WHEN c.relispartition THEN pg_catalog.pg_get_expr(c.relpartbound, c.oid) END,
   CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END,
   CASE WHEN c.reloftype <> 0 THEN c.reloftype::regtype::text END,
   (SELECT pg_catalog.array_agg(i.inhparent::regclass::text ORDER BY i.inhseqno) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
   (SELECT pg_catalog.format('%I', s.srvname) FROM pg_catalog.pg_foreign_table f JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = c.oid)
 )::text, ` + noRoles + `
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND c.relpersistence <> 't' AND ` + user("pg_class", "c")},

		{"view", `SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), NULL, pg_catalog.pg_get_viewdef(c.oid), ` + noRoles + `
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('v', 'm') AND c.relpersistence <> 't' AND ` + user("pg_class", "c")},

		{"constraint", `SELECT CASE WHEN o.conrelid <> 0 THEN pg_catalog.format('%I.%I.%I', n.nspname, c.relname, o.conname) ELSE pg_catalog.format('%s.%I', o.contypid::regtype, o.conname) END, NULL,
 pg_catalog.jsonb_build_array(o.contype, o.convalidated, pg_catalog.pg_get_constraintdef(o.oid), CASE WHEN o.contype = 'c' THEN o.connoinherit END)::text, ` + noRoles + `
  FROM pg_catalog.pg_constraint o JOIN pg_catalog.pg_namespace n ON n.oid = o.connamespace
  LEFT JOIN pg_catalog.pg_class c ON c.oid = o.conrelid
 WHERE ` + userSchema + ` AND o.contype <> 't' AND NOT (o.contype = 'f' AND o.conparentid <> 0)` + notNull + `
   AND (o.conrelid = 0 OR NOT ` + member("pg_class", "o.conrelid") + `)
   AND (o.contypid = 0 OR NOT ` + member("pg_type", "o.contypid") + `)`},

		{"index", `SELECT pg_catalog.format('%I.%I', n.nspname, x.relname), NULL,
 pg_catalog.jsonb_build_array(pg_catalog.pg_get_indexdef(i.indexrelid), i.indisclustered, i.indisreplident, i.indimmediate,
   (SELECT pg_catalog.array_agg(p.inhparent::regclass::text) FROM pg_catalog.pg_inherits p WHERE p.inhrelid = x.oid))::text, ` + noRoles + `
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
 WHERE (i.indisvalid OR c.relkind = 'p') AND c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't' AND ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid")},

		{"sequence", `SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), NULL,
 pg_catalog.jsonb_build_array(s.seqtypid::regtype::text, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle,
   (SELECT pg_catalog.format('%s.%I %s', d.refobjid::regclass, a.attname, d.deptype) FROM pg_catalog.pg_depend d
      JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
     WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
       AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0))::text, ` + noRoles + `
  FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relpersistence <> 't' AND ` + user("pg_class", "c")},

		{"function", `SELECT pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)),
 pg_catalog.pg_get_userbyid(p.proowner), pg_catalog.pg_get_functiondef(p.oid), ` + noRoles + `
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.prokind <> 'a' AND ` + user("pg_proc", "p") + `
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'i')`},

		{"aggregate", `SELECT pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)),
 pg_catalog.pg_get_userbyid(p.proowner), pg_catalog.jsonb_build_array(pg_catalog.pg_get_function_result(p.oid), p.proparallel, a.aggkind, a.aggnumdirectargs,
   a.aggtransfn::text, a.aggfinalfn::text, a.aggcombinefn::text, a.aggserialfn::text, a.aggdeserialfn::text, a.aggmtransfn::text, a.aggminvtransfn::text,
   a.aggmfinalfn::text, a.aggfinalextra, a.aggmfinalextra, a.aggfinalmodify, a.aggmfinalmodify, a.aggsortop::regoperator::text, a.aggtranstype::regtype::text,
   a.aggtransspace, a.aggmtranstype::regtype::text, a.aggmtransspace, a.agginitval, a.aggminitval)::text, ` + noRoles + `
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_aggregate a ON a.aggfnoid = p.oid
 WHERE ` + user("pg_proc", "p")},

		{"type", `SELECT pg_catalog.format('%I.%I', n.nspname, t.typname), pg_catalog.pg_get_userbyid(t.typowner),
 pg_catalog.jsonb_build_array(t.typtype, t.typlen, t.typbyval, t.typcategory, t.typispreferred, t.typdelim, t.typalign, t.typstorage,
   CASE WHEN t.typtype = 'd' THEN pg_catalog.jsonb_build_array(pg_catalog.format_type(t.typbasetype, t.typtypmod), t.typnotnull, pg_catalog.pg_get_expr(t.typdefaultbin, 0), t.typcollation::regcollation::text) END,
   CASE WHEN t.typtype IN ('b', 'r') THEN pg_catalog.jsonb_build_array(t.typinput::text, t.typoutput::text, t.typreceive::text, t.typsend::text, t.typmodin::text, t.typdefault) END,
   (SELECT pg_catalog.array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid),
   (SELECT pg_catalog.jsonb_build_array(r.rngsubtype::regtype::text, r.rngcollation::regcollation::text, r.rngcanonical::text, r.rngsubdiff::text,
           (SELECT o.opcname FROM pg_catalog.pg_opclass o WHERE o.oid = r.rngsubopc)) FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid))::text, ` + noRoles + `
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
 WHERE (t.typrelid = 0 OR c.relkind = 'c') AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_type e WHERE e.typarray = t.oid)
   AND t.typtype <> 'm' AND ` + user("pg_type", "t")},

		{"trigger", `SELECT pg_catalog.format('%I.%I.%I', n.nspname, c.relname, g.tgname), NULL,
 pg_catalog.jsonb_build_array(pg_catalog.pg_get_triggerdef(g.oid), g.tgenabled)::text, ` + noRoles + `
  FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid")},

		{"rule", `SELECT pg_catalog.format('%I.%I.%I', n.nspname, c.relname, r.rulename), NULL,
 pg_catalog.jsonb_build_array(pg_catalog.pg_get_ruledef(r.oid), r.ev_enabled)::text, ` + noRoles + `
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE r.rulename <> '_RETURN' AND ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid")},

		{"policy", `SELECT pg_catalog.format('%I.%I.%I', n.nspname, c.relname, p.polname), NULL,
 pg_catalog.jsonb_build_array(p.polcmd, p.polpermissive, pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid),
   (SELECT pg_catalog.array_agg(pg_catalog.pg_get_userbyid(r) ORDER BY pg_catalog.pg_get_userbyid(r)) FROM pg_catalog.unnest(p.polroles) r WHERE r <> 0))::text,
 coalesce((SELECT pg_catalog.array_agg(pg_catalog.pg_get_userbyid(r)::text) FROM pg_catalog.unnest(p.polroles) r WHERE r <> 0), '{}')
  FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid")},

		{"statistics", `SELECT pg_catalog.format('%I.%I', n.nspname, s.stxname), pg_catalog.pg_get_userbyid(s.stxowner), pg_catalog.pg_get_statisticsobjdef(s.oid), ` + noRoles + `
  FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE ` + user("pg_statistic_ext", "s")},

		{"operator", `SELECT o.oid::regoperator::text, pg_catalog.pg_get_userbyid(o.oprowner),
 pg_catalog.jsonb_build_array(o.oprkind, o.oprcanmerge, o.oprcanhash, o.oprresult::regtype::text, o.oprcom::regoperator::text, o.oprnegate::regoperator::text,
   o.oprcode::text, o.oprrest::text, o.oprjoin::text)::text, ` + noRoles + `
  FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE o.oprcode <> 0 AND ` + user("pg_operator", "o")},

		{"operator class", `SELECT pg_catalog.format('%I.%I USING %I', n.nspname, o.opcname, a.amname), pg_catalog.pg_get_userbyid(o.opcowner),
 pg_catalog.jsonb_build_array(o.opcintype::regtype::text, o.opcdefault, o.opckeytype::regtype::text)::text, ` + noRoles + `
  FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_namespace n ON n.oid = o.opcnamespace JOIN pg_catalog.pg_am a ON a.oid = o.opcmethod WHERE ` + user("pg_opclass", "o")},

		{"operator family", `SELECT pg_catalog.format('%I.%I USING %I', n.nspname, o.opfname, a.amname), pg_catalog.pg_get_userbyid(o.opfowner), '', ` + noRoles + `
  FROM pg_catalog.pg_opfamily o JOIN pg_catalog.pg_namespace n ON n.oid = o.opfnamespace JOIN pg_catalog.pg_am a ON a.oid = o.opfmethod WHERE ` + user("pg_opfamily", "o")},

		{"collation", `SELECT pg_catalog.format('%I.%I', n.nspname, o.collname), pg_catalog.pg_get_userbyid(o.collowner),
 (pg_catalog.to_jsonb(o) - 'oid' - 'collnamespace' - 'collowner' - 'collversion')::text, ` + noRoles + `
  FROM pg_catalog.pg_collation o JOIN pg_catalog.pg_namespace n ON n.oid = o.collnamespace WHERE ` + user("pg_collation", "o")},

		{"conversion", `SELECT pg_catalog.format('%I.%I', n.nspname, o.conname), pg_catalog.pg_get_userbyid(o.conowner),
 pg_catalog.jsonb_build_array(o.conforencoding, o.contoencoding, o.conproc::text, o.condefault)::text, ` + noRoles + `
  FROM pg_catalog.pg_conversion o JOIN pg_catalog.pg_namespace n ON n.oid = o.connamespace WHERE ` + user("pg_conversion", "o")},

		{"text search dictionary", `SELECT pg_catalog.format('%I.%I', n.nspname, o.dictname), pg_catalog.pg_get_userbyid(o.dictowner),
 pg_catalog.jsonb_build_array((SELECT t.tmplname FROM pg_catalog.pg_ts_template t WHERE t.oid = o.dicttemplate), o.dictinitoption)::text, ` + noRoles + `
  FROM pg_catalog.pg_ts_dict o JOIN pg_catalog.pg_namespace n ON n.oid = o.dictnamespace WHERE ` + user("pg_ts_dict", "o")},

		{"text search configuration", `SELECT pg_catalog.format('%I.%I', n.nspname, o.cfgname), pg_catalog.pg_get_userbyid(o.cfgowner),
 (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(m.maptokentype, m.mapseqno, m.mapdict::regdictionary::text) ORDER BY m.maptokentype, m.mapseqno)
    FROM pg_catalog.pg_ts_config_map m WHERE m.mapcfg = o.oid)::text, ` + noRoles + `
  FROM pg_catalog.pg_ts_config o JOIN pg_catalog.pg_namespace n ON n.oid = o.cfgnamespace WHERE ` + user("pg_ts_config", "o")},

		{"cast", `SELECT pg_catalog.format('%s AS %s', o.castsource::regtype, o.casttarget::regtype), NULL,
 pg_catalog.jsonb_build_array(o.castfunc::regprocedure::text, o.castcontext, o.castmethod)::text, ` + noRoles + `
  FROM pg_catalog.pg_cast o WHERE ` + loose("pg_cast")},

		{"language", `SELECT pg_catalog.quote_ident(o.lanname), pg_catalog.pg_get_userbyid(o.lanowner), pg_catalog.jsonb_build_array(o.lanpltrusted)::text, ` + noRoles + `
  FROM pg_catalog.pg_language o WHERE ` + loose("pg_language")},

		{"foreign-data wrapper", `SELECT pg_catalog.quote_ident(o.fdwname), pg_catalog.pg_get_userbyid(o.fdwowner), '', ` + noRoles + `
  FROM pg_catalog.pg_foreign_data_wrapper o WHERE ` + loose("pg_foreign_data_wrapper")},

		{"server", `SELECT pg_catalog.quote_ident(o.srvname), pg_catalog.pg_get_userbyid(o.srvowner),
 pg_catalog.jsonb_build_array(w.fdwname, o.srvtype, o.srvversion)::text, ` + noRoles + `
  FROM pg_catalog.pg_foreign_server o JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = o.srvfdw WHERE ` + loose("pg_foreign_server")},
	}
}

// readGrants adds one object for each object with privileges: who may do what,
// in a fixed order, without the owner's own and without grantors. Whether they
// are compared is a matter of the acl option.
func (c *catalog) readGrants(ctx context.Context, conn *pgx.Conn) error {
	grants := func(kind, owner, acl, letter string) string {
		return `pg_catalog.array_to_string(ARRAY(SELECT pg_catalog.format('%s %s%s', CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
   a.privilege_type, CASE WHEN a.is_grantable THEN ' *' ELSE '' END) FROM pg_catalog.aclexplode(coalesce(` + acl + `, pg_catalog.acldefault('` + letter + `', ` + owner + `))) a
   WHERE a.grantee <> ` + owner + ` ORDER BY 1), ', '),
 ARRAY(SELECT DISTINCT pg_catalog.pg_get_userbyid(a.grantee)::text FROM pg_catalog.aclexplode(` + acl + `) a WHERE a.grantee <> 0 AND a.grantee <> ` + owner + `), '` + kind + `'`
	}
	queries := []string{
		`SELECT pg_catalog.quote_ident(n.nspname), ` + grants("schema", "n.nspowner", "n.nspacl", "n") + `
  FROM pg_catalog.pg_namespace n WHERE ` + userSchema + ` AND NOT ` + member("pg_namespace", "n.oid"),
		`SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), ` + grants("relation", "c.relowner", "c.relacl", "r") + `
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid"),
		`SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), ` + grants("relation", "c.relowner", "c.relacl", "s") + `
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid"),
		`SELECT pg_catalog.format('%I.%I.%I', n.nspname, c.relname, t.attname), ` + grants("column", "c.relowner", "t.attacl", "c") + `
  FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE t.attacl IS NOT NULL AND t.attnum > 0 AND NOT t.attisdropped AND ` + userSchema + ` AND NOT ` + member("pg_class", "c.oid"),
		`SELECT pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)), ` + grants("function", "p.proowner", "p.proacl", "f") + `
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.oid >= 16384 AND ` + userSchema + ` AND NOT ` + member("pg_proc", "p.oid"),
		`SELECT pg_catalog.format('%I.%I', n.nspname, t.typname), ` + grants("type", "t.typowner", "t.typacl", "T") + `
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typacl IS NOT NULL AND t.oid >= 16384 AND ` + userSchema + ` AND NOT ` + member("pg_type", "t.oid"),
	}
	for _, sql := range queries {
		rows, err := conn.Query(ctx, sql)
		if err != nil {
			return fmt.Errorf("read grants: %w", err)
		}
		var (
			identity, list, kind string
			roles                []string
		)
		_, err = pgx.ForEachRow(rows, []any{&identity, &list, &roles, &kind}, func() error {
			o := Object{Kind: kindGrant, Identity: kind + " " + identity, definition: list}
			if len(roles) > 0 {
				o.Roles = append(o.Roles, roles...)
			}
			c.Objects = append(c.Objects, o)
			return nil
		})
		if err != nil {
			return fmt.Errorf("read grants: %w", err)
		}
	}
	return nil
}

// Kinds of objects that options or versions leave out of a comparison.
const (
	kindGrant   = "grant"
	kindComment = "comment"
)

// readComments adds one object for each comment. Those on large objects go
// with the large objects.
func (c *catalog) readComments(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT pg_catalog.format('%s %s', i.type, i.identity), d.description
  FROM pg_catalog.pg_description d, LATERAL pg_catalog.pg_identify_object(d.classoid, d.objoid, d.objsubid) i
 WHERE d.objoid >= 16384 AND d.classoid <> 'pg_catalog.pg_largeobject'::regclass AND i.identity IS NOT NULL
   AND d.classoid <> ALL (ARRAY['pg_catalog.pg_publication'::regclass, 'pg_catalog.pg_subscription'::regclass, 'pg_catalog.pg_event_trigger'::regclass])
   AND coalesce(i.schema, '') !~ '^pg_(toast|temp)'
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend x WHERE x.classid = d.classoid AND x.objid = d.objoid AND x.deptype = 'e')`)
	if err != nil {
		return fmt.Errorf("read comments: %w", err)
	}
	var identity, text string
	_, err = pgx.ForEachRow(rows, []any{&identity, &text}, func() error {
		c.Objects = append(c.Objects, Object{Kind: kindComment, Identity: identity, definition: text})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read comments: %w", err)
	}
	return nil
}

// readLosses lists what a clone leaves behind, so that a plan says so.
func (c *catalog) readLosses(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT 'event trigger', evtname::text, 'needs a superuser at the target' FROM pg_catalog.pg_event_trigger t
 WHERE NOT `+member("pg_event_trigger", "t.oid")+`
UNION ALL SELECT 'publication', pubname::text, 'replication is not copied' FROM pg_catalog.pg_publication
UNION ALL SELECT 'subscription', subname::text, 'replication is not copied' FROM pg_catalog.pg_subscription
   WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
UNION ALL SELECT 'user mapping', pg_catalog.format('%s for %s', srvname, usename), 'holds credentials' FROM pg_catalog.pg_user_mappings
UNION ALL SELECT 'foreign table', pg_catalog.format('%s.%s', n.nspname, c.relname), 'its rows live elsewhere; the definition is copied'
   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'f' AND `+userSchema+`
UNION ALL SELECT 'security label', pg_catalog.format('%s %s', i.type, i.identity), 'labels are not copied'
   FROM pg_catalog.pg_seclabel s, LATERAL pg_catalog.pg_identify_object(s.classoid, s.objoid, s.objsubid) i`)
	if err != nil {
		return fmt.Errorf("read what is not copied: %w", err)
	}
	var l Loss
	_, err = pgx.ForEachRow(rows, []any{&l.Kind, &l.Name, &l.Why}, func() error { c.NotCopied = append(c.NotCopied, l); return nil })
	return err
}
