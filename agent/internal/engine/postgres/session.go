package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const connectTimeout = 20 * time.Second

// server is one side of an operation: how to open sessions there.
type server struct {
	side        wire.Side
	endpoint    engine.Endpoint
	application string // application_name of every session
}

// pinned are the settings that decide how values and definitions are written.
// They are equal on both sides, whatever the server, the database or the role
// has set: digests are taken over the text. Parameters at start-up win over
// ALTER ROLE and ALTER DATABASE.
func pinned() map[string]string {
	return map[string]string{
		"client_encoding":                     "UTF8",
		"search_path":                         "",
		"DateStyle":                           "ISO, YMD",
		"IntervalStyle":                       "postgres",
		"TimeZone":                            "UTC",
		"extra_float_digits":                  "3",
		"bytea_output":                        "hex",
		"lc_monetary":                         "C",
		"xmloption":                           "content",
		"standard_conforming_strings":         "on",
		"quote_all_identifiers":               "off",
		"array_nulls":                         "on",
		"row_security":                        "off",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"client_min_messages":                 "error",
	}
}

// open starts a session in database.
func (s *server) open(ctx context.Context, database string) (*pgx.Conn, error) {
	// Everything is set by hand below: ParseConfig would otherwise take values
	// from the environment and from files of the user.
	config, err := pgx.ParseConfig("host=localhost port=5432 user=none password=none dbname=none sslmode=disable passfile=/dev/null servicefile=/dev/null target_session_attrs=any")
	if err != nil {
		return nil, fmt.Errorf("prepare connection: %w", err)
	}
	e := s.endpoint
	config.Host, config.Port = e.Host, uint16(e.Port)
	config.User, config.Password, config.Database = e.Username, e.Password.Reveal(), database
	config.ConnectTimeout = connectTimeout
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return e.Dial(ctx) }
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	if err := useTLS(&config.Config, e.Endpoint); err != nil {
		return nil, err
	}
	config.RuntimeParams = pinned()
	config.RuntimeParams["application_name"] = s.application
	if s.side == wire.Source {
		config.RuntimeParams["default_transaction_read_only"] = "on"
	} else {
		config.RuntimeParams["default_transaction_read_only"] = "off"
		config.RuntimeParams["synchronous_commit"] = "off"
		config.RuntimeParams["check_function_bodies"] = "off"
		config.RuntimeParams["default_tablespace"] = ""
		config.RuntimeParams["default_transaction_isolation"] = "read committed"
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 16, 0
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	// Settings that older servers do not know would refuse the connection as
	// start-up parameters.
	set := ""
	switch version := versionOf(conn); {
	case version >= 170000:
		set = "SET client_connection_check_interval = '1s'; SET idle_session_timeout = 0; SET transaction_timeout = 0"
	case version >= 140000:
		set = "SET client_connection_check_interval = '1s'; SET idle_session_timeout = 0"
	}
	if set != "" {
		if err := execute(ctx, conn, set); err != nil {
			return nil, errors.Join(err, closeSession(conn))
		}
	}
	return conn, nil
}

// versionOf is the server's version as in server_version_num: 150018 for 15.18.
func versionOf(conn *pgx.Conn) int {
	text := conn.PgConn().ParameterStatus("server_version")
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	major, err := strconv.Atoi(text[:end])
	if err != nil {
		return 0
	}
	minor := 0
	if end < len(text) && text[end] == '.' {
		rest := text[end+1:]
		last := 0
		for last < len(rest) && rest[last] >= '0' && rest[last] <= '9' {
			last++
		}
		if minor, err = strconv.Atoi(rest[:last]); err != nil {
			minor = 0
		}
	}
	return major*10000 + minor
}

// execute runs statements by the simple protocol: several may stand in one text.
func execute(ctx context.Context, conn *pgx.Conn, statements string) error {
	_, err := conn.PgConn().Exec(ctx, statements).ReadAll()
	return err
}

// closeSession ends a session within a second, even when the operation's
// context has ended.
func closeSession(conn *pgx.Conn) error {
	if conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return conn.Close(ctx)
}

// openMaintenance starts a session at the target in a database that no clone
// replaces. The databases are tried in a fixed order, so that two sessions of
// one operation meet in the same one.
func (s *server) openMaintenance(ctx context.Context) (*pgx.Conn, error) {
	var first error
	for _, database := range []string{"postgres", "template1"} {
		if database == s.endpoint.Database {
			continue
		}
		conn, err := s.open(ctx, database)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		switch stateOf(err) {
		case "3D000", "42501", "28000", "55000":
			// No such database, or not for us: another one may do.
		default:
			return nil, err
		}
	}
	return nil, first
}
