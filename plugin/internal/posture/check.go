package posture

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Check is one thing that is looked for.
type Check struct {
	ID       string
	Severity wire.Risk
	// Finds says what a finding of it means.
	Finds string
	// Remedy is the way out.
	Remedy string
	// Points are taken off the score when it finds something; 0: as many as go
	// with the severity.
	Points int
}

// points is what the check takes off the score.
func (c Check) points() int {
	if c.Points > 0 {
		return c.Points
	}
	switch c.Severity {
	case wire.RiskCritical:
		return 25
	case wire.RiskHigh:
		return 10
	case wire.RiskMedium:
		return 4
	case wire.RiskLow:
		return 1
	default:
		return 0
	}
}

// The checks that more than one file speaks of.
const (
	checkUnchecked   = "not_checked"
	checkUnreachable = "server_unreachable"
	checkNoTLS       = "tls_off"
	checkUnverified  = "tls_unverified"
	checkRootRights  = "root_excess_rights"
)

// Checks lists every check, in the order of README's table.
func Checks() []Check {
	return slices.Concat([]Check{
		{
			checkUnchecked, wire.RiskInfo, "something could not be looked at, so nothing is known of it",
			"give the connection's login the right that is named, see README, least rights", 0,
		},
	}, mountChecks(), []Check{
		{checkUnreachable, wire.RiskMedium, "the server could not be asked", "see that it runs and that Vault reaches it", 0},
		{checkNoTLS, wire.RiskHigh, "the engine's own session is not encrypted", "connect with TLS: sslmode=verify-full, tls=true", 0},
		{checkUnverified, wire.RiskHigh, "the server's certificate is not verified, so anybody between may answer in its place", "give the authority and verify: sslmode=verify-full with tls_ca, no tls_skip_verify, no insecure_tls", 0},
		{checkRootRights, wire.RiskHigh, "the engine's own login has more rights than README's table", "take away the rights that are named", 0},
	}, postgresChecks(), mysqlChecks(), redisChecks())
}

// checkOf returns the check of that id; one that is not listed is a defect, told
// as a finding that nobody can miss.
func checkOf(id string) Check {
	for _, c := range Checks() {
		if c.ID == id {
			return c
		}
	}
	return Check{ID: id, Severity: wire.RiskCritical, Remedy: "tell the developers: check " + id + " is not listed"}
}

// report collects the findings about one subject.
type report struct {
	subject  wire.Subject
	findings []wire.Finding
}

func (r *report) add(id, format string, args ...any) {
	c := checkOf(id)
	r.findings = append(r.findings, wire.Finding{ID: id, Severity: c.Severity, Subject: r.subject, Seen: fmt.Sprintf(format, args...), Remedy: c.Remedy})
}

// addNames adds a finding that names things, unless there are none.
func (r *report) addNames(id, what string, names []string) {
	if len(names) > 0 {
		r.add(id, "%s: %s", what, listed(names))
	}
}

// shownNames is how many names a finding shows.
const shownNames = 10

// listed joins names, at most [shownNames] of them.
func listed(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) <= shownNames {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shownNames], ", "), len(names)-shownNames)
}

// Unchecked is something a driver could not look at.
type Unchecked struct {
	What string // "pg_hba.conf", in people's words
	Why  string // one sentence without secrets, naming the right that is missing
}

// Session is how the engine itself talks to a server.
type Session struct {
	TLS bool
	// Verified says that the server's certificate was checked against an authority.
	Verified bool
}

func (r *report) session(s Session) {
	switch {
	case !s.TLS:
		r.add(checkNoTLS, "the session is not encrypted")
	case !s.Verified:
		r.add(checkUnverified, "the session is encrypted, the certificate is not verified")
	}
}

// unchecked tells everything that could not be looked at in one finding.
func (r *report) unchecked(all []Unchecked) {
	if len(all) == 0 {
		return
	}
	texts := make([]string, 0, len(all))
	for _, u := range all {
		texts = append(texts, u.What+" ("+u.Why+")")
	}
	r.add(checkUnchecked, "could not be checked: %s", strings.Join(texts, "; "))
}

// Unreachable is the finding about a server that did not answer.
func Unreachable(connection, reason string) wire.Finding {
	r := report{subject: wire.Subject{Kind: wire.SubjectConnection, Name: connection}}
	r.add(checkUnreachable, "%s", reason)
	return r.findings[0]
}

// NotChecked is the finding about a server that nothing is known of.
func NotChecked(connection, what, why string) wire.Finding {
	r := report{subject: wire.Subject{Kind: wire.SubjectConnection, Name: connection}}
	r.unchecked([]Unchecked{{What: what, Why: why}})
	return r.findings[0]
}

// Facts are what a driver saw on a server; one of the pointers is set.
type Facts struct {
	Session   Session
	Postgres  *PostgresFacts
	MySQL     *MySQLFacts
	Redis     *RedisFacts
	Unchecked []Unchecked
}

// Server judges what was seen on a connection's server. ours begins the names of
// logins that the engine itself has made, which come and go.
func Server(connection string, facts Facts, ours string) []wire.Finding {
	r := report{subject: wire.Subject{Kind: wire.SubjectConnection, Name: connection}}
	r.session(facts.Session)
	if facts.Postgres != nil {
		facts.Postgres.judge(&r, ours)
	}
	if facts.MySQL != nil {
		facts.MySQL.judge(&r, ours)
	}
	if facts.Redis != nil {
		facts.Redis.judge(&r, ours)
	}
	r.unchecked(facts.Unchecked)
	return r.findings
}

// isOurs reports whether a login was made by the engine.
func isOurs(name, ours string) bool { return ours != "" && strings.HasPrefix(name, ours) }
