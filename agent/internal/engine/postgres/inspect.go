package postgres

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// inspectionFormat is the version of the JSON below. It passes between worker
// and agent of one build only.
const inspectionFormat = 1

// oldestMajor is the oldest PostgreSQL this engine works with: DROP DATABASE
// WITH (FORCE) came with it.
const oldestMajor = 13

// inspection is what Inspect answers and Plan reads. It holds nothing that
// depends on who looked, so that the running account sees what the planning one
// saw.
type inspection struct {
	Format   int                 `json:"format"`
	Identity wire.ServerIdentity `json:"identity"`
	Major    int                 `json:"major"`
	Exists   bool                `json:"exists"`
	Database database            `json:"database"`
	// Of the source.
	Tables       []Table     `json:"tables,omitempty"`
	Objects      []Object    `json:"objects,omitempty"`
	Extensions   []Extension `json:"extensions,omitempty"`
	NotCopied    []Loss      `json:"not_copied,omitempty"`
	LargeObjects int64       `json:"large_objects,omitempty"`
	// Of the target.
	Available []available `json:"available,omitempty"`
	Roles     []string    `json:"roles,omitempty"`
}

// database is what CREATE DATABASE decides, and the owner.
type database struct {
	Owner    string `json:"owner"`
	Encoding string `json:"encoding"`
	Collate  string `json:"collate"`
	CType    string `json:"ctype"`
	// Provider is libc, icu or builtin; Locale belongs to the latter two.
	Provider string `json:"provider"`
	Locale   string `json:"locale,omitempty"`
	Rules    string `json:"rules,omitempty"`
	Template bool   `json:"template,omitempty"`
	Bytes    int64  `json:"bytes"` // not part of a shape
}

// available is an extension a server could install.
type available struct {
	Name     string   `json:"name"`
	Default  string   `json:"default"`
	Versions []string `json:"versions"`
	// Trusted: a database owner may install it.
	Trusted bool `json:"trusted"`
}

// Inspect reads the catalogs of one side.
func (e *Engine) Inspect(ctx context.Context, side wire.Side, endpoint engine.Endpoint) (json.RawMessage, error) {
	s := &server{side: side, endpoint: endpoint, application: "dbops inspect"}
	if endpoint.Database == "" {
		return nil, &operation.Error{
			Step: wire.StepInspect, Code: wire.CodeInvalid,
			Reason: "connection " + endpoint.Connection + " names no database", Hint: "set database on the connection",
		}
	}
	seen, err := s.inspect(ctx)
	if err == nil && side == wire.Source {
		_, err = e.findDump(ctx, endpoint, seen.Major)
	}
	if err != nil {
		failed := *fault(wire.StepInspect, side, "inspect the "+string(side), interrupted(ctx, err))
		failed.Step = wire.StepInspect
		return nil, &failed
	}
	text, err := json.Marshal(seen)
	if err != nil {
		return nil, fmt.Errorf("encode inspection: %w", err)
	}
	return text, nil
}

// interrupted returns the reason ctx ended, when it has, instead of err, which
// then only tells how something was torn down.
func interrupted(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	var decided *operation.Error
	if errors.As(context.Cause(ctx), &decided) {
		return decided
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &operation.Error{Code: wire.CodeDeadline, Reason: "out of time", Err: ctx.Err()}
	}
	return &operation.Error{Code: wire.CodeCancelled, Reason: "stopped on request", Err: ctx.Err()}
}

func (s *server) inspect(ctx context.Context) (inspection, error) {
	if s.side == wire.Target {
		conn, err := s.openMaintenance(ctx)
		if err != nil {
			return inspection{}, err
		}
		defer closeSession(conn) //nolint:errcheck // read only
		return inspectTarget(ctx, conn, s.endpoint.Database)
	}
	conn, err := s.open(ctx, s.endpoint.Database)
	if err != nil {
		return inspection{}, err
	}
	defer closeSession(conn) //nolint:errcheck // read only
	seen, _, err := inspectSource(ctx, conn)
	return seen, err
}

// inspectSource reads the session's own database, and returns its catalog too.
func inspectSource(ctx context.Context, conn *pgx.Conn) (inspection, *catalog, error) {
	var name string
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.current_database()`).Scan(&name); err != nil {
		return inspection{}, nil, err
	}
	seen, err := inspectServer(ctx, conn, name)
	if err != nil {
		return inspection{}, nil, err
	}
	held, err := readCatalog(ctx, conn)
	if err != nil {
		return inspection{}, nil, err
	}
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_catalog.pg_largeobject_metadata`).Scan(&seen.LargeObjects); err != nil {
		return inspection{}, nil, err
	}
	seen.Tables, seen.Extensions, seen.NotCopied = held.Tables, held.Extensions, held.NotCopied
	for i := range held.Objects {
		if held.Objects[i].Kind != "column" { // stands in its table
			seen.Objects = append(seen.Objects, held.Objects[i])
		}
	}
	return seen, held, nil
}

// inspectTarget reads about database name from a session elsewhere on its
// server.
func inspectTarget(ctx context.Context, conn *pgx.Conn, name string) (inspection, error) {
	seen, err := inspectServer(ctx, conn, name)
	if err != nil {
		return inspection{}, err
	}
	rows, err := conn.Query(ctx, `
SELECT e.name::text, coalesce(e.default_version, ''), array_agg(v.version ORDER BY v.version COLLATE "C"), bool_or(v.trusted OR NOT v.superuser)
  FROM pg_catalog.pg_available_extensions e JOIN pg_catalog.pg_available_extension_versions v ON v.name = e.name
 GROUP BY 1, 2 ORDER BY 1`)
	if err != nil {
		return inspection{}, err
	}
	if seen.Available, err = pgx.CollectRows(rows, pgx.RowToStructByPos[available]); err != nil {
		return inspection{}, err
	}
	rows, err = conn.Query(ctx, `SELECT rolname::text FROM pg_catalog.pg_roles WHERE NOT rolcanlogin OR rolvaliduntil IS NULL ORDER BY 1`)
	if err != nil {
		return inspection{}, err
	}
	seen.Roles, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return seen, err
}

func inspectServer(ctx context.Context, conn *pgx.Conn, name string) (inspection, error) {
	version := versionOf(conn)
	seen := inspection{
		Format: inspectionFormat, Major: version / 10000,
		Identity: wire.ServerIdentity{
			Engine: wire.EnginePostgres, Database: name,
			Version: strconv.Itoa(version/10000) + "." + strconv.Itoa(version%10000),
		},
	}
	if seen.Major < oldestMajor {
		return inspection{}, &operation.Error{
			Step: wire.StepInspect, Code: wire.CodeUnsupported, Reason: "PostgreSQL " + seen.Identity.Version + " is too old",
			Hint: "version " + strconv.Itoa(oldestMajor) + " is the oldest one supported",
		}
	}
	// Our end of the connection knows. pg_stat_ssl hides even the own session from a
	// login that acts as another role, as running accounts do.
	_, seen.Identity.TLS = conn.PgConn().Conn().(*tls.Conn)
	err := conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_catalog.pg_control_system()`).Scan(&seen.Identity.Server)
	if err != nil {
		return inspection{}, err
	}
	locale := `''`
	provider, rules := `'c'`, `''`
	switch {
	case seen.Major >= 17:
		provider, locale, rules = `d.datlocprovider::text`, `coalesce(d.datlocale, '')`, `coalesce(d.daticurules, '')`
	case seen.Major == 16:
		provider, locale, rules = `d.datlocprovider::text`, `coalesce(d.daticulocale, '')`, `coalesce(d.daticurules, '')`
	case seen.Major == 15:
		provider, locale = `d.datlocprovider::text`, `coalesce(d.daticulocale, '')`
	}
	d := &seen.Database
	// pg_database_size needs CONNECT on the database; without it the size is not
	// known, which is no reason to fail.
	err = conn.QueryRow(ctx, `
SELECT d.oid::text, pg_catalog.pg_get_userbyid(d.datdba), pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
       `+provider+`, `+locale+`, `+rules+`, d.datistemplate,
       CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') THEN pg_catalog.pg_database_size(d.oid) ELSE 0 END
  FROM pg_catalog.pg_database d WHERE d.datname = $1`, name).
		Scan(&seen.Identity.DatabaseID, &d.Owner, &d.Encoding, &d.Collate, &d.CType, &d.Provider, &d.Locale, &d.Rules, &d.Template, &d.Bytes)
	if errors.Is(err, pgx.ErrNoRows) {
		return seen, nil
	}
	if err != nil {
		return inspection{}, err
	}
	switch d.Provider {
	case "i":
		d.Provider = "icu"
	case "b":
		d.Provider = "builtin"
	default:
		d.Provider, d.Locale = "libc", ""
	}
	seen.Exists = true
	return seen, nil
}
