package parity_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// permit allows one difference in the rows named.
type permit struct {
	where        string
	theirs, ours string
	// rows are names; one that ends with "*" stands for all that begin so.
	rows []string
	why  string
}

// allowed lists every difference there may be. Each name on it must be needed.
func allowed() []permit {
	return []permit{
		{
			where: "status", theirs: "5xx", ours: "4xx",
			why: "the mistake is in the configuration or the request; clients repeat what gets a 5xx, three times",
			rows: []string{
				"creds: by broken statements", "creds: by no statements", "creds: by a missing password policy",
				"creds: the second of one name", "creds: not an allowed role", "creds: no allowed roles",
				"creds: not allowed by a glob", "creds: without a connection", "config: name with two dots",
				"rotate-root: without a username",
				"static-roles: db_name that is missing", "static-roles: a user who is missing", "static-creds: not an allowed role",
				"rotate-role: not an allowed role", "static-roles: write when not an allowed role",
				"mysql: creds by broken statements", "mysql: creds by no statements",
				"redis: creds by broken statements", "redis: creds by statements that are no list",
				"static-roles: a key where the database takes none", "static-roles: a login that changes its own password",
			},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "revoking never fails: what cannot be ended now stands under revocations/ and is tried for ever; there are no irrevocable leases",
			rows: []string{"lease: revoke by a broken statement", "lease: revoke without its connection"},
		},
		{
			where: "status", theirs: "2xx", ours: "4xx",
			why:  "a key that is nearly a known one, or that would do nothing, is a slip; a mistyped secret would be stored in clear",
			rows: []string{"config: a field that is nearly known", "roles: credential_config unknown key", "static-roles: credential_config unknown", "keys: config of another type"},
		},
		{
			where: "status", theirs: absent, ours: "4xx",
			why:  "the built-in engine panics on a certificate that is none, and closes the connection",
			rows: []string{"config: tls_certificate no certificate"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "what an update does not name stays; the built-in engine takes a missing username for a change of it",
			rows: []string{"static-roles: update without username"},
		},
		{
			where: "status", theirs: "5xx", ours: "404",
			why:  "what is asked for is not there",
			rows: []string{"reset: a missing one", "rotate-root: a missing connection"},
		},
		{
			where: "status", theirs: "4xx", ours: "404",
			why:  "what is asked for is not there",
			rows: []string{"rotate-role: a missing one", "rotate-role: a dynamic role"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "self_managed is of the enterprise edition there, and works here",
			rows: []string{"static-roles: a connection that is self_managed"},
		},
		{
			where: "data.rotation_window", theirs: "number", ours: absent,
			why:  "a rotation_window of 0 takes it away; in the built-in engine nothing does",
			rows: []string{"static-roles: window is gone"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "TLS without an authority of its own uses the system's",
			rows: []string{"redis: tls without an authority"},
		},
		{
			where: "lease_duration", theirs: values, ours: values,
			why:  "creds takes a ttl; the built-in engine ignores it",
			rows: []string{"creds: with a ttl"},
		},
		{
			where: "warnings", theirs: "array", ours: "null",
			why:  "as above: nothing was ignored",
			rows: []string{"creds: with a ttl"},
		},
		{
			where: "data.rotation_period", theirs: absent, ours: "number",
			why:  "Vault Agent reads again in time only if there are both rotation_period and ttl",
			rows: []string{"static-creds: by a schedule"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "one plugin serves every product, so a version of another one is kept for tools that set it, with a warning",
			rows: []string{"config: plugin_version that is missing"},
		},
		{
			where: "data.running_plugin_version", theirs: absent, ours: "string",
			why:  "the built-in plugins have no version to name; external ones do, as here",
			rows: []string{"config: *", "rotate-root: *", "mysql: *", "redis: *"},
		},
		{
			where: "data.connection_details.max_open_connections", theirs: "string", ours: "number",
			why:  "Terraform's provider crashes on a number that is a string, however it was written",
			rows: []string{"config: numbers that were text"},
		},
		{
			where: "data.connection_details.max_idle_connections", theirs: "string", ours: "number",
			why:  "as max_open_connections",
			rows: []string{"config: numbers that were text"},
		},
		{
			where: "data.connection_details.connection_url", theirs: values, ours: values,
			why:  "the built-in engine percent-encodes a URL in keyword form into one that does not work; ours shows what was written",
			rows: []string{"config: keyword form is read"},
		},
		{
			where: "body", theirs: absent, ours: "object",
			why:  "the built-in engine stores it without a word; ours stores it with a warning of what it comes to",
			rows: []string{"roles: default_ttl above max_ttl", "creds: a role with default_ttl above max_ttl"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "the built-in plugin for PostgreSQL knows passwords only; here a certificate logs in by a line with cert in pg_hba.conf",
			rows: []string{"certificates: creds where the database takes none"},
		},
		{
			where: "data.credential_config.ca_private_key", theirs: "string", ours: absent,
			why:  "the key that signs for everybody is not for whoever may read a role",
			rows: []string{"certificates: read it", "certificates: after an update that names no config"},
		},
		{
			where: "data.credential_config", theirs: "object", ours: absent,
			why:  "an empty credential_config takes the settings away; in the built-in engine nothing does",
			rows: []string{"roles: credential_config cleared", "keys: a password now"},
		},
		{
			where: "data.credential_config", theirs: values, ours: values,
			why:  "as above: the same difference by value",
			rows: []string{"roles: credential_config cleared", "keys: a password now"},
		},
		{
			where: "data.credential_config", theirs: values, ours: values,
			why:  "what an update does not name stays; the built-in engine goes back to 2048 bits without a word",
			rows: []string{"keys: after an update that names no config"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "what an update does not name stays; the built-in engine wants the whole credential_config again",
			rows: []string{"certificates: an update that names no config"},
		},
		{
			where: "data.connection_details.max_connection_lifetime", theirs: "number", ours: "string",
			why:  "Terraform's provider crashes on a duration that is a number, however it was written",
			rows: []string{"config: max_connection_lifetime was a number", "config: another product is there"},
		},
		{
			where: "data.connection_details.port", theirs: "string", ours: "number",
			why:  "Terraform's provider crashes on a number that is a string, however it was written",
			rows: []string{"redis: port was text"},
		},
		{
			where: "data.last_vault_rotation", theirs: "string", ours: absent,
			why:  "skip_import_rotation is of the enterprise edition there, which the built-in engine ignores and rotates; here it works",
			rows: []string{"static-roles: read it without a rotation first"},
		},
		{
			where: "status", theirs: "4xx", ours: "2xx",
			why:  "the built-in plugin for MySQL knows passwords only",
			rows: []string{"mysql: creds of a key pair"},
		},
	}
}

// reporter is what a judge needs of a test.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// judge compares answers and keeps count of what was allowed.
type judge struct {
	t       reporter
	permits []permit
	// used says which names of which permit were needed.
	used map[string]bool
	// names are those of the rows seen, and of those left out.
	names   map[string]bool
	skipped map[string]bool
}

func newJudge(t reporter, permits []permit) *judge {
	return &judge{t: t, permits: permits, used: map[string]bool{}, names: map[string]bool{}, skipped: map[string]bool{}}
}

// leaveOut notes the rows of a group our engine does not answer yet.
func (j *judge) leaveOut(g group) {
	j.t.Helper()
	if g.minimum > 0 {
		j.t.Errorf("our engine no longer answers %s: %d rows must be compared", g.name, g.minimum)
	}
	j.t.Logf("%-22s   0 rows compared; %d wait for the feature", g.name, len(g.rows))
	for _, r := range g.rows {
		j.skipped[r.name] = true
	}
}

func (j *judge) compare(r row, theirs, ours answer) {
	j.t.Helper()
	if j.names[r.name] {
		j.t.Errorf("two rows are called %q", r.name)
	}
	j.names[r.name] = true
	if ours.status >= http.StatusInternalServerError && !r.down {
		j.t.Errorf("%q: our engine answers %s although no database is down", r.name, ours)
	}
	for _, d := range compare(r, theirs, ours) {
		if !j.permitted(d) {
			j.t.Errorf("%s\n\tbuilt-in: %s\n\tours:     %s", d, theirs, ours)
		}
	}
}

// permitted reports whether the list allows d, and ticks it off.
func (j *judge) permitted(d difference) bool {
	for i, p := range j.permits {
		for _, name := range p.rows {
			if p.where == d.where && p.theirs == d.kind(d.theirs) && p.ours == d.kind(d.ours) && covers(name, d.row) {
				j.used[use(i, name)] = true
				return true
			}
		}
	}
	return false
}

// kind is what permits say of a side: a difference in values is not told apart.
func (d difference) kind(side string) string {
	if d.byValue {
		return values
	}
	return side
}

// values stands on the list for both sides of a difference in values.
const values = "another value"

func covers(name, row string) bool {
	if prefix, all := strings.CutSuffix(name, "*"); all {
		return strings.HasPrefix(row, prefix)
	}
	return name == row
}

// left reports whether rows of that name were left out.
func (j *judge) left(name string) bool {
	for row := range j.skipped {
		if covers(name, row) {
			return true
		}
	}
	return false
}

func use(permit int, name string) string { return fmt.Sprint(permit, " ", name) }

// finish fails the test for whatever is allowed and did not happen.
func (j *judge) finish() {
	j.t.Helper()
	for i, p := range j.permits {
		if p.why == "" {
			j.t.Errorf("a difference in %s is allowed without a reason", p.where)
		}
		for _, name := range p.rows {
			switch {
			case j.used[use(i, name)] || j.left(name):
			case strings.HasSuffix(name, "*") || j.names[name]:
				j.t.Errorf("%q: %s no longer differs as allowed (%s, %s); take it off the list", name, p.where, p.theirs, p.ours)
			default:
				j.t.Errorf("%q is allowed to differ, but there is no such row", name)
			}
		}
	}
}

// complaints are what a judge found.
type complaints []string

func (c *complaints) Helper()             {}
func (c *complaints) Logf(string, ...any) {}
func (c *complaints) Errorf(format string, args ...any) {
	*c = append(*c, fmt.Sprintf(format, args...))
}

// A difference that is not on the list fails, and so does an entry of the list
// that nothing needs, names no row or gives no reason, a 5xx of ours without a
// database that is down, and a feature that was there.
func TestJudge(t *testing.T) {
	t.Parallel()
	refused, failed, fine := answer{status: 400}, answer{status: 500}, answer{status: 204}
	kinder := permit{where: "status", theirs: "5xx", ours: "4xx", why: "kinder", rows: []string{"a"}}
	for name, c := range map[string]struct {
		permits      []permit
		theirs, ours answer
		down         bool
		skipped      group
		want         int
	}{
		"the same":                  {theirs: fine, ours: fine},
		"different":                 {theirs: failed, ours: refused, want: 1},
		"different as allowed":      {permits: []permit{kinder}, theirs: failed, ours: refused},
		"different in another way":  {permits: []permit{kinder}, theirs: fine, ours: refused, want: 2},
		"allowed but not needed":    {permits: []permit{kinder}, theirs: fine, ours: fine, want: 1},
		"allowed for all beginning": {permits: []permit{{where: "status", theirs: "5xx", ours: "4xx", why: "w", rows: []string{"*"}}}, theirs: failed, ours: refused},
		"allowed for no row": {
			permits: []permit{{where: "status", theirs: "5xx", ours: "4xx", why: "w", rows: []string{"b"}}}, theirs: fine, ours: fine, want: 1,
		},
		"allowed for a row left out": {
			permits: []permit{{where: "status", theirs: "5xx", ours: "4xx", why: "w", rows: []string{"b"}}}, theirs: fine, ours: fine,
			skipped: group{rows: []row{{name: "b"}}},
		},
		"a feature was lost": {theirs: fine, ours: fine, skipped: group{minimum: 1}, want: 1},
		"without a reason": {
			permits: []permit{{where: "status", theirs: "5xx", ours: "4xx", rows: []string{"a"}}}, theirs: failed, ours: refused, want: 1,
		},
		"ours fails":                 {theirs: failed, ours: failed, want: 1},
		"ours fails, database down":  {theirs: failed, ours: failed, down: true},
		"the connection was dropped": {theirs: answer{}, ours: refused, want: 1},
	} {
		var found complaints
		j := newJudge(&found, c.permits)
		j.leaveOut(c.skipped)
		j.compare(row{name: "a", down: c.down}, c.theirs, c.ours)
		j.finish()
		require.Len(t, found, c.want, "%s: %v", name, found)
	}
}
