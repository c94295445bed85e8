package posture

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var update = flag.Bool("update", false, "write golden files anew")

func ids(findings []wire.Finding) []string {
	all := []string{}
	for _, f := range findings {
		all = append(all, f.ID)
	}
	slices.Sort(all)
	return all
}

// Every check has an id of its own, a severity, and says what it finds and how to
// mend it.
func TestChecks_AreWhole(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range Checks() {
		require.False(t, seen[c.ID], c.ID)
		seen[c.ID] = true
		require.True(t, c.Severity.Valid(), c.ID)
		require.NotEmpty(t, c.Finds, c.ID)
		require.NotEmpty(t, c.Remedy, c.ID)
		require.Equal(t, c.Severity != wire.RiskInfo, c.points() > 0, c.ID)
	}
}

var verified = Session{TLS: true, Verified: true}

// Each fact about a PostgreSQL server leads to its finding, and a hardened one to
// none.
func TestServer_Postgres(t *testing.T) {
	t.Parallel()
	hardened := func() *PostgresFacts {
		return &PostgresFacts{
			Settings: map[string]string{
				PostgresSSL: "on", PostgresMinTLS: "TLSv1.2", PostgresEncryption: "scram-sha-256", PostgresLogConnections: "on", PostgresLogDisconnections: "on",
			},
			HBA: []HBALine{
				{1, "local", []string{"all"}, []string{"postgres"}, "", "", "peer"},
				{2, "host", []string{"all"}, []string{"all"}, "127.0.0.1", "255.255.255.255", "scram-sha-256"},
				{3, "hostssl", []string{"shop"}, []string{"app"}, "10.0.1.0", "255.255.255.0", "scram-sha-256"},
			},
			OwnRights: []string{"CREATEROLE", "pg_signal_backend"},
		}
	}
	for name, row := range map[string]struct {
		change func(*PostgresFacts)
		want   []string
	}{
		"hardened":              {func(*PostgresFacts) {}, nil},
		"nothing known":         {func(f *PostgresFacts) { *f = PostgresFacts{} }, nil},
		"ssl":                   {func(f *PostgresFacts) { f.Settings[PostgresSSL] = "off" }, []string{"postgres_ssl_off"}},
		"old tls":               {func(f *PostgresFacts) { f.Settings[PostgresMinTLS] = "TLSv1" }, []string{"postgres_tls_old"}},
		"encryption":            {func(f *PostgresFacts) { f.Settings[PostgresEncryption] = "md5" }, []string{"postgres_password_encryption"}},
		"connections":           {func(f *PostgresFacts) { f.Settings[PostgresLogConnections] = "off" }, []string{"postgres_log_connections"}},
		"connections, as list":  {func(f *PostgresFacts) { f.Settings[PostgresLogConnections] = "" }, []string{"postgres_log_connections"}},
		"connections, some":     {func(f *PostgresFacts) { f.Settings[PostgresLogConnections] = "receipt,authorization" }, nil},
		"disconnections":        {func(f *PostgresFacts) { f.Settings[PostgresLogDisconnections] = "off" }, []string{"postgres_log_disconnections"}},
		"md5":                   {func(f *PostgresFacts) { f.MD5Passwords = []string{"app"} }, []string{"postgres_password_md5"}},
		"md5 of ours":           {func(f *PostgresFacts) { f.MD5Passwords = []string{"dbops-x-1"} }, nil},
		"plain":                 {func(f *PostgresFacts) { f.PlainPasswords = []string{"app"} }, []string{"postgres_password_plain"}},
		"superusers":            {func(f *PostgresFacts) { f.Superusers = []string{"bob"} }, []string{"postgres_superusers"}},
		"public":                {func(f *PostgresFacts) { f.PublicCreate, f.PublicUsage = []string{"public"}, []string{"public"} }, []string{"postgres_public_create", "postgres_public_usage"}},
		"public tables":         {func(f *PostgresFacts) { f.PublicTables = []string{"public.t"} }, []string{"postgres_public_tables"}},
		"public on databases":   {func(f *PostgresFacts) { f.PublicTemp, f.PublicConnect = []string{"shop"}, []string{"shop"} }, []string{"postgres_public_connect", "postgres_public_temp"}},
		"own rights":            {func(f *PostgresFacts) { f.OwnRights = []string{"SUPERUSER", "CREATEROLE"} }, []string{"root_excess_rights"}},
		"local trust":           {func(f *PostgresFacts) { f.HBA[0].Method = "trust" }, []string{"postgres_hba_trust"}},
		"password in clear":     {func(f *PostgresFacts) { f.HBA[2].Method = "password" }, []string{"postgres_hba_password"}},
		"network without tls":   {func(f *PostgresFacts) { f.HBA[2].Type = "host" }, []string{"postgres_hba_plaintext"}},
		"refusing is no danger": {func(f *PostgresFacts) { f.HBA[2].Address, f.HBA[2].Netmask, f.HBA[2].Method = "all", "", "reject" }, nil},
		"world":                 {func(f *PostgresFacts) { f.HBA[2].Address, f.HBA[2].Netmask = "0.0.0.0", "0.0.0.0" }, []string{"postgres_hba_open"}},
		"world, v6":             {func(f *PostgresFacts) { f.HBA[2].Address, f.HBA[2].Netmask = "::", "::" }, []string{"postgres_hba_open"}},
		"without tls, refused before": {func(f *PostgresFacts) {
			f.HBA[1] = HBALine{2, "hostnossl", []string{"all"}, []string{"all"}, "0.0.0.0", "0.0.0.0", "reject"}
			f.HBA[2].Type = "host"
		}, nil},
		"without tls, refused for one user": {func(f *PostgresFacts) {
			f.HBA[1] = HBALine{2, "hostnossl", []string{"all"}, []string{"bob"}, "0.0.0.0", "0.0.0.0", "reject"}
			f.HBA[2].Type = "host"
		}, []string{"postgres_hba_plaintext"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := hardened()
			row.change(f)
			require.Equal(t, append([]string{}, row.want...), ids(Server("c", Facts{Session: verified, Postgres: f}, "dbops-x-")))
		})
	}
}

// The session itself is judged, whatever the product.
func TestServer_Session(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"tls_off"}, ids(Server("c", Facts{}, "")))
	require.Equal(t, []string{"tls_unverified"}, ids(Server("c", Facts{Session: Session{TLS: true}}, "")))
	require.Empty(t, Server("c", Facts{Session: verified}, ""))
}

// What could not be looked at is one finding that names it all.
func TestServer_Unchecked(t *testing.T) {
	t.Parallel()
	found := Server("c", Facts{Session: verified, Unchecked: []Unchecked{{"pg_hba.conf", "needs more"}, {"accounts", "needs even more"}}}, "")
	require.Len(t, found, 1)
	require.Equal(t, wire.RiskInfo, found[0].Severity)
	require.Equal(t, "could not be checked: pg_hba.conf (needs more); accounts (needs even more)", found[0].Seen)
}

// Each fact about a MySQL server leads to its finding.
func TestServer_MySQL(t *testing.T) {
	t.Parallel()
	app := MySQLAccount{User: "app", Host: "10.0.1.%", Plugin: "ed25519", RequiresTLS: true}
	with := func(change func(*MySQLAccount)) *MySQLFacts {
		a := app
		change(&a)
		return &MySQLFacts{Accounts: []MySQLAccount{a}}
	}
	variables := func(name, value string) *MySQLFacts { return &MySQLFacts{Variables: map[string]string{name: value}} }
	for name, row := range map[string]struct {
		facts *MySQLFacts
		want  []string
	}{
		"hardened": {&MySQLFacts{Accounts: []MySQLAccount{app, {User: "mariadb.sys", Host: "localhost", Plugin: "mysql_native_password", Empty: true}}, Variables: map[string]string{
			MySQLSecureTransport: "ON", MySQLLocalInfile: "OFF", MySQLSecureFilePriv: "/x/", MySQLTLSVersion: "TLSv1.2,TLSv1.3", MySQLHaveSSL: "YES",
		}, OwnRights: []string{"CREATE USER", "PROCESS", "CONNECTION ADMIN", "SELECT"}}, nil},
		"empty password":     {with(func(a *MySQLAccount) { a.Empty = true }), []string{"mysql_empty_password"}},
		"empty, but locked":  {with(func(a *MySQLAccount) { a.Empty, a.Locked = true, true }), nil},
		"anonymous":          {with(func(a *MySQLAccount) { a.User = "" }), []string{"mysql_anonymous"}},
		"every host":         {with(func(a *MySQLAccount) { a.Host = "%" }), []string{"mysql_any_host"}},
		"without tls":        {with(func(a *MySQLAccount) { a.RequiresTLS = false }), []string{"mysql_no_require_ssl"}},
		"without tls, local": {with(func(a *MySQLAccount) { a.RequiresTLS, a.Host = false, "localhost" }), nil},
		"native":             {with(func(a *MySQLAccount) { a.Plugin = "mysql_native_password" }), []string{"mysql_native_password"}},
		"native, ours":       {with(func(a *MySQLAccount) { a.Plugin, a.User, a.Host = "mysql_native_password", "dbops-x-1", "%" }), nil},
		"old":                {with(func(a *MySQLAccount) { a.Plugin = "mysql_old_password" }), []string{"mysql_old_password"}},
		"super":              {with(func(a *MySQLAccount) { a.Super = true }), []string{"mysql_superusers"}},
		"transport":          {variables(MySQLSecureTransport, "OFF"), []string{"mysql_secure_transport"}},
		"infile":             {variables(MySQLLocalInfile, "ON"), []string{"mysql_local_infile"}},
		"files":              {variables(MySQLSecureFilePriv, ""), []string{"mysql_secure_file_priv"}},
		"old tls":            {variables(MySQLTLSVersion, "TLSv1.1,TLSv1.2"), []string{"mysql_tls_old"}},
		"no tls":             {variables(MySQLHaveSSL, "DISABLED"), []string{"mysql_ssl_off"}},
		"test database":      {&MySQLFacts{TestDatabase: true}, []string{"mysql_test_database"}},
		"own rights":         {&MySQLFacts{OwnRights: []string{"CREATE USER", "FILE"}}, []string{"root_excess_rights"}},
		"own rights, mysql":  {&MySQLFacts{OwnRights: []string{"UPDATE ON mysql.*"}}, []string{"root_excess_rights"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, append([]string{}, row.want...), ids(Server("c", Facts{Session: verified, MySQL: row.facts}, "dbops-x-")))
		})
	}
}

// Each fact about a Redis server leads to its finding.
func TestServer_Redis(t *testing.T) {
	t.Parallel()
	user := func(u RedisUser) *RedisFacts { return &RedisFacts{Users: []RedisUser{u}, Own: "vault"} }
	settings := func(pairs ...string) *RedisFacts {
		f := &RedisFacts{Settings: map[string]string{}}
		for i := 0; i < len(pairs); i += 2 {
			f.Settings[pairs[i]] = pairs[i+1]
		}
		return f
	}
	for name, row := range map[string]struct {
		facts *RedisFacts
		want  []string
	}{
		"default off":      {user(RedisUser{Name: "default", NoPass: true, Rules: []string{"+@all"}}), nil},
		"default open":     {user(RedisUser{Name: "default", On: true, NoPass: true, Rules: []string{"-@all +get"}}), []string{"redis_default_open"}},
		"default on":       {user(RedisUser{Name: "default", On: true, Rules: []string{"+@all -@dangerous -acl"}}), []string{"redis_default_on"}},
		"default powerful": {user(RedisUser{Name: "default", On: true, Rules: []string{"+@all"}}), []string{"redis_dangerous_default", "redis_default_on"}},
		"app":              {user(RedisUser{Name: "app", On: true, Data: true, Rules: []string{"-@all +@read +@write -@dangerous"}}), nil},
		"app nopass":       {user(RedisUser{Name: "app", On: true, NoPass: true, Rules: []string{"-@all +get"}}), []string{"redis_nopass"}},
		"app powerful":     {user(RedisUser{Name: "app", On: true, Rules: []string{"-@all +config"}}), []string{"redis_dangerous_users"}},
		"app selector":     {user(RedisUser{Name: "app", On: true, Rules: []string{"-@all +get", "-@all +flushall"}}), []string{"redis_dangerous_users"}},
		"app off":          {user(RedisUser{Name: "app", Rules: []string{"+@all"}}), nil},
		"ours":             {user(RedisUser{Name: "V_X_1", On: true, Rules: []string{"+@all"}}), nil},
		"own":              {user(RedisUser{Name: "vault", On: true, Rules: []string{"-@all +ping +info +acl|getuser +acl|setuser +acl|deluser +acl|users +acl|save +config|get +config|rewrite"}}), nil},
		"own all":          {user(RedisUser{Name: "vault", On: true, Rules: []string{"+@all"}}), []string{"root_excess_rights"}},
		"own data":         {user(RedisUser{Name: "vault", On: true, Data: true, Rules: []string{"-@all +ping"}}), []string{"root_excess_rights"}},
		"bind":             {settings(RedisBind, "* -::*", RedisProtectedMode, "yes"), []string{"redis_bind_all"}},
		"bind nothing":     {settings(RedisBind, "", RedisProtectedMode, "yes"), []string{"redis_bind_all"}},
		"protected":        {settings(RedisBind, "0.0.0.0", RedisProtectedMode, "no"), []string{"redis_protected_mode"}},
		"protected local":  {settings(RedisBind, "127.0.0.1 -::1", RedisProtectedMode, "no"), nil},
		"plaintext":        {settings(RedisPort, "6379"), []string{"redis_plaintext_port"}},
		"tls only":         {settings(RedisPort, "0"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, append([]string{}, row.want...), ids(Server("c", Facts{Session: verified, Redis: row.facts}, "V_X_")))
		})
	}
}

// Rules about commands are applied from left to right, as the server does.
func TestPermits(t *testing.T) {
	t.Parallel()
	for rules, want := range map[string]bool{
		"":                          false,
		"-@all":                     false,
		"+@all":                     true,
		"allcommands":               true,
		"nocommands":                false,
		"+@all -config":             false,
		"+@all -config|set":         false,
		"-@all +config|get":         false,
		"-@all +config|set":         true,
		"-@all +config":             true,
		"+@all -@admin":             false,
		"+@all -@dangerous +config": true,
		"-@all +@admin -@slow":      false,
		"+@all -@read":              true,
	} {
		require.Equal(t, want, permits(rules, "config|set"), rules)
	}
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// Each thing the engine knows by itself leads to its finding.
func TestMount_Findings(t *testing.T) {
	t.Parallel()
	good := func() Mount {
		return Mount{
			Now: noon,
			Policies: []policy.Policy{{
				Name: "refresh", Entities: []string{"*"}, Sources: []string{"prod"}, Targets: []string{"staging"}, AllowedOperations: []string{"clone"},
				TargetLabels: map[string]string{"env": "staging"}, RequireAuthentication: true, EnableNetworkIsolation: true, AuditOperations: true,
			}},
			Connections: []Connection{{
				Connection:  policy.Connection{Name: "prod", Labels: map[string]string{"env": "prod"}, Protected: true},
				OwnPassword: true, RootRotated: noon.Add(-time.Hour),
			}},
			StaticRoles: []StaticRole{{"app", noon.Add(time.Hour)}, {"manual", time.Time{}}},
			Agents:      []Agent{{Name: "a1", Grace: time.Minute, Heard: noon, Listening: noon.Add(-time.Hour), AuditDevices: 2}},
		}
	}
	for name, row := range map[string]struct {
		change func(*Mount)
		want   []string
	}{
		"good":      {func(*Mount) {}, nil},
		"no policy": {func(m *Mount) { m.Policies = nil }, []string{"policy_none"}},
		"minimum": {func(m *Mount) {
			p := &m.Policies[0]
			p.RequireAuthentication, p.EnableNetworkIsolation, p.AuditOperations = false, false, false
		}, []string{"policy_minimum"}},
		"unclassified": {func(m *Mount) { m.Connections[0].Labels = nil }, []string{"unclassified"}},
		"prod as target, by label": {func(m *Mount) {
			m.Connections[0].Protected = false
			m.Policies[0].Targets, m.Policies[0].TargetLabels = []string{"*"}, map[string]string{"env": "*"}
		}, []string{"protected_unapproved"}},
		"prod as target, but protected": {func(m *Mount) {
			m.Policies[0].Targets, m.Policies[0].TargetLabels = []string{"*"}, nil
		}, nil},
		"prod as target, protection lifted": {func(m *Mount) {
			m.Policies[0].Targets, m.Policies[0].TargetLabels, m.Policies[0].AllowProtectedTarget = []string{"*"}, nil, true
		}, []string{"protected_unapproved"}},
		"prod as target, approved": {func(m *Mount) {
			m.Connections[0].Protected = false
			m.Policies[0].Targets, m.Policies[0].TargetLabels = []string{"*"}, nil
			m.Policies[0].Approvals = &policy.Approvals{Count: 1, Groups: []string{"g"}}
		}, nil},
		"prod as target, approved by another policy": {func(m *Mount) {
			m.Connections[0].Protected = false
			m.Policies[0].Targets, m.Policies[0].TargetLabels = []string{"*"}, nil
			guard := m.Policies[0]
			guard.Name, guard.Sources, guard.Approvals = "guard", []string{"*"}, &policy.Approvals{Count: 1, Groups: []string{"g"}}
			m.Policies = append(m.Policies, guard)
		}, nil},
		"prod as target, approved for another source only": {func(m *Mount) {
			m.Connections[0].Protected = false
			m.Policies[0].Targets, m.Policies[0].TargetLabels = []string{"*"}, nil
			guard := m.Policies[0]
			guard.Name, guard.Sources, guard.Approvals = "guard", []string{"other"}, &policy.Approvals{Count: 1, Groups: []string{"g"}}
			m.Policies = append(m.Policies, guard)
		}, []string{"protected_unapproved"}},
		"backups do not write": {func(m *Mount) {
			m.Policies[0].Targets, m.Policies[0].TargetLabels, m.Policies[0].AllowProtectedTarget = []string{"*"}, nil, true
			m.Policies[0].AllowedOperations = []string{"backup"}
		}, nil},
		"never rotated":        {func(m *Mount) { m.Connections[0].RootRotated = time.Time{} }, []string{"root_never_rotated"}},
		"no password of ours":  {func(m *Mount) { m.Connections[0].RootRotated, m.Connections[0].OwnPassword = time.Time{}, false }, nil},
		"root overdue":         {func(m *Mount) { m.Connections[0].RootDue = noon.Add(-time.Hour) }, []string{"root_rotation_overdue"}},
		"role overdue":         {func(m *Mount) { m.StaticRoles[0].Due = noon.Add(-time.Hour) }, []string{"static_role_overdue"}},
		"role due":             {func(m *Mount) { m.StaticRoles[0].Due = noon.Add(-time.Minute) }, nil},
		"revocations":          {func(m *Mount) { m.Connections[0].Revocations = 2 }, []string{"revocations_waiting"}},
		"a copy of this Vault": {func(m *Mount) { m.Connections[0].Strangers = 3 }, []string{"mount_id_shared"}},
		"agent lost":           {func(m *Mount) { m.Agents[0].Heard = noon.Add(-time.Hour) }, []string{"agent_silent", "not_checked"}},
		"agent never heard":    {func(m *Mount) { m.Agents[0].Heard = time.Time{} }, []string{"agent_silent", "not_checked"}},
		"engine just started":  {func(m *Mount) { m.Agents[0].Heard, m.Agents[0].Listening = time.Time{}, noon }, []string{"not_checked", "not_checked"}},
		"no agent":             {func(m *Mount) { m.Agents = nil }, []string{"not_checked"}},
		"no audit device":      {func(m *Mount) { m.Agents[0].AuditDevices = 0 }, []string{"audit_missing"}},
		"one audit device":     {func(m *Mount) { m.Agents[0].AuditDevices = 1 }, []string{"audit_single"}},
		"agent could not look": {func(m *Mount) { m.Agents[0].AuditDevices = -1 }, []string{"not_checked"}},
		"mount hides events": {func(m *Mount) {
			m.Agents[0].AuditDevices, m.Agents[0].AuditUntuned, m.Agents[0].AuditProblem = 0, true, "the mount hides: fence"
		}, []string{"audit_untuned"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := good()
			row.change(&m)
			require.Equal(t, append([]string{}, row.want...), ids(m.Findings()))
		})
	}
}

// The score is a function of the findings alone: what is found on many subjects
// counts once, a policy at the level minimum alone brings it to the upper end of
// that level's band, and it never is below 0.
func TestJudge_Golden(t *testing.T) {
	t.Parallel()
	finding := func(id, connection string) wire.Finding {
		r := about(wire.SubjectConnection, connection)
		r.add(id, "seen")
		return r.findings[0]
	}
	cases := map[string][]wire.Finding{
		"nothing":      nil,
		"info":         {finding(checkUnchecked, "a")},
		"minimum":      {finding("policy_minimum", "a")},
		"one":          {finding("postgres_log_connections", "a")},
		"many of one":  {finding("tls_off", "b"), finding("tls_off", "a"), finding("tls_off", "c")},
		"worst first":  {finding("postgres_public_temp", "a"), finding("redis_default_open", "b"), finding("tls_off", "a"), finding(checkUnchecked, "a")},
		"below bottom": {finding("redis_default_open", "a"), finding("redis_nopass", "a"), finding("mysql_empty_password", "a"), finding("postgres_hba_trust", "a"), finding("tls_off", "a")},
	}
	got := map[string]wire.Posture{}
	for name, findings := range cases {
		got[name] = Judge(findings)
	}
	require.Equal(t, 100, got["nothing"].Score)
	require.Equal(t, 40, got["minimum"].Score)
	require.Equal(t, 0, got["below bottom"].Score)
	content, err := json.MarshalIndent(got, "", "  ")
	require.NoError(t, err)
	path := filepath.Join("testdata", "score.json")
	if *update {
		require.NoError(t, os.WriteFile(path, append(content, '\n'), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(content))
}

// A finding names ten things at most.
func TestListed(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a, b", listed([]string{"b", "a", "b"}))
	require.Equal(t, "a, b, c, d, e, f, g, h, i, j and 2 more", listed([]string{"l", "k", "j", "i", "h", "g", "f", "e", "d", "c", "b", "a"}))
}
