package posture

import (
	"fmt"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Mount is what the engine knows by itself, at one instant.
type Mount struct {
	Now         time.Time
	Policies    []policy.Policy
	Connections []Connection
	StaticRoles []StaticRole
	Agents      []Agent
}

// Connection is one connection as the engine knows it.
type Connection struct {
	policy.Connection
	// OwnPassword says that the engine logs in with a password it could rotate.
	OwnPassword bool
	// RootRotated is when the engine last rotated it, RootDue when it is next due;
	// zero is never.
	RootRotated, RootDue time.Time
	// Revocations is how many logins on it could not be ended yet.
	Revocations int
	// Strangers is how many logins with the mount's id, which it has not made, have
	// come up; Stranger is one of the latest, seen at StrangerSeen.
	Strangers    int
	Stranger     string
	StrangerSeen time.Time
}

// StaticRole is one login whose credential is rotated.
type StaticRole struct {
	Name string
	Due  time.Time // zero: on request only
}

// Agent is one registered agent.
type Agent struct {
	Name  string
	Grace time.Duration
	// Heard is when it last spoke; zero: not since Listening, when the engine began
	// to hear.
	Heard, Listening time.Time
	// AuditDevices is how many audit devices record its events; -1: it could not
	// look.
	AuditDevices int
	// AuditProblem is why none does. AuditUntuned says that it is because the mount
	// hides events from them.
	AuditProblem string
	AuditUntuned bool
}

// overdueAfter is how late a rotation may be: a server may be away for a moment.
const overdueAfter = 5 * time.Minute

func mountChecks() []Check {
	return []Check{
		{"audit_missing", wire.RiskCritical, "no audit device is enabled, so nothing is recorded and no operation starts", "vault audit enable", 0},
		{"audit_untuned", wire.RiskHigh, "the mount hides events from the audit devices", "run dbops setup, or the vault secrets tune of README, audit", 0},
		{"audit_single", wire.RiskLow, "there is one audit device: whoever stops it stops everything, and whoever alters its file alters the only copy", "enable a second one that ships elsewhere", 0},
		{"policy_none", wire.RiskLow, "there is no policy, so every operation is refused", "vault write dbops/policies/<name> …", 0},
		{"policy_minimum", wire.RiskHigh, "a policy is at the level minimum", "set require_authentication, enable_network_isolation and audit_operations", 60},
		{"protected_unapproved", wire.RiskHigh, "operations may write to production (protected, or label env=prod) without anybody's approval", "ask for approvals in the policies that are named, or let none write there", 0},
		{"unclassified", wire.RiskMedium, "a connection lacks labels that policies mention, so no operation may use it", "write the labels in connections/<name>", 0},
		{"root_never_rotated", wire.RiskMedium, "the engine's own password is still the one that a person gave it", "vault write -f dbops/rotate-root/<name>", 0},
		{"root_rotation_overdue", wire.RiskHigh, "the engine's own password should have been rotated", "see Vault's log for why it was not", 0},
		{"static_role_overdue", wire.RiskHigh, "a static role's credential should have been rotated", "vault write -f dbops/rotate-role/<name> tells why it was not", 0},
		{"revocations_waiting", wire.RiskMedium, "logins are left that could not be ended", "see revocations/ for why; they are tried again until they are gone", 0},
		{"mount_id_shared", wire.RiskHigh, "logins with this mount's id appear that it has not made: another Vault runs on a copy of its storage, or the server was restored from a backup", "cut the copy off from the databases, see README, after a restore", 0},
		{"agent_silent", wire.RiskMedium, "a registered agent is not heard", "see that it runs, or delete agents/<name>", 0},
	}
}

func about(kind wire.SubjectKind, name string) report {
	return report{subject: wire.Subject{Kind: kind, Name: name}}
}

// Findings judges everything but the servers.
func (m Mount) Findings() []wire.Finding {
	var all []wire.Finding
	all = append(all, m.audit()...)
	if len(m.Policies) == 0 {
		r := about(wire.SubjectMount, "")
		r.add("policy_none", "there is no policy")
		all = append(all, r.findings...)
	}
	for _, p := range m.Policies {
		if score, band := p.Score(); band == policy.PresetMinimum {
			r := about(wire.SubjectPolicy, p.Name)
			r.add("policy_minimum", "its rules score %d of %d", score, policy.MaxScore)
			all = append(all, r.findings...)
		}
	}
	for _, c := range m.Connections {
		all = append(all, m.Connection(c)...)
	}
	for _, s := range m.StaticRoles {
		if late(s.Due, m.Now) {
			r := about(wire.SubjectStaticRole, s.Name)
			r.add("static_role_overdue", "it was due at %s", s.Due.UTC().Format(time.RFC3339))
			all = append(all, r.findings...)
		}
	}
	for _, a := range m.Agents {
		all = append(all, a.findings(m.Now)...)
	}
	return all
}

func late(due, now time.Time) bool { return !due.IsZero() && now.Sub(due) > overdueAfter }

// Connection judges one connection, but not its server.
func (m Mount) Connection(c Connection) []wire.Finding {
	r := about(wire.SubjectConnection, c.Name)
	var missing []string
	for _, key := range policy.LabelKeys(m.Policies) {
		if _, ok := c.Labels[key]; !ok {
			missing = append(missing, key)
		}
	}
	r.addNames("unclassified", "labels that are missing", missing)
	if production(c) {
		r.addNames("protected_unapproved", "policies", policy.Unapproved(m.Policies, c.Connection))
	}
	switch {
	case !c.OwnPassword:
	case c.RootRotated.IsZero():
		r.add("root_never_rotated", "rotate-root has not been used since the connection was written")
	case late(c.RootDue, m.Now):
		r.add("root_rotation_overdue", "it was due at %s", c.RootDue.UTC().Format(time.RFC3339))
	}
	if c.Revocations > 0 {
		r.add("revocations_waiting", "logins that wait: %d", c.Revocations)
	}
	if c.Strangers > 0 {
		r.add("mount_id_shared", "logins: %d, the last of them %s at %s", c.Strangers, c.Stranger, c.StrangerSeen.UTC().Format(time.RFC3339))
	}
	return r.findings
}

// production reports whether a connection leads to what nobody should write to
// alone.
func production(c Connection) bool {
	env := strings.ToLower(c.Labels["env"])
	return c.Protected || env == "prod" || env == "production"
}

func (a Agent) findings(now time.Time) []wire.Finding {
	r := about(wire.SubjectAgent, a.Name)
	switch {
	case !a.Heard.IsZero() && now.Sub(a.Heard) > a.Grace:
		r.add("agent_silent", "last heard at %s", a.Heard.UTC().Format(time.RFC3339))
	case a.Heard.IsZero() && now.Sub(a.Listening) > a.Grace:
		r.add("agent_silent", "not heard since %s, when the engine started", a.Listening.UTC().Format(time.RFC3339))
	case a.Heard.IsZero():
		r.unchecked([]Unchecked{{What: "whether it works", Why: "the engine has just started"}})
	}
	return r.findings
}

// speaks reports whether what the agent said last is recent.
func (a Agent) speaks(now time.Time) bool { return !a.Heard.IsZero() && now.Sub(a.Heard) <= a.Grace }

// audit judges what agents report of audit devices: the engine cannot see them.
func (m Mount) audit() []wire.Finding {
	r := about(wire.SubjectMount, "")
	seen := -1
	var missing, untuned, blind []string
	for _, a := range m.Agents {
		switch {
		case !a.speaks(m.Now):
		case a.AuditUntuned:
			untuned = append(untuned, fmt.Sprintf("%s: %s", a.Name, a.AuditProblem))
		case a.AuditDevices == 0 && a.AuditProblem != "":
			missing = append(missing, fmt.Sprintf("%s: %s", a.Name, a.AuditProblem))
		case a.AuditDevices == 0:
			missing = append(missing, a.Name+": none")
		case a.AuditDevices < 0:
			blind = append(blind, a.Name)
		default:
			seen = max(seen, a.AuditDevices)
		}
	}
	r.addNames("audit_missing", "agents report", missing)
	r.addNames("audit_untuned", "agents report", untuned)
	switch {
	case len(missing)+len(untuned) > 0:
	case len(blind) > 0:
		r.unchecked([]Unchecked{{What: "audit devices", Why: "these agents could not look: " + listed(blind)}})
	case seen < 0:
		r.unchecked([]Unchecked{{What: "audit devices and the mount's tuning", Why: "only agents see them, and none is heard"}})
	case seen == 1:
		r.add("audit_single", "agents see one audit device")
	}
	return r.findings
}
