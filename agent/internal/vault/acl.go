package vault

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Duty is one of the jobs people and agents have with dbops. Each has one ACL
// policy, so that duties can be given to different people.
type Duty string

// The duties. DutyAgent is the one no person has. DutyAdmin, DutyDeveloper and
// DutyAnalyst are put together from the others, for sites where one person does
// much: the roles of AIShell's guide, of which the fourth is DutyOperator.
const (
	DutyAdmin           Duty = "admin"
	DutyDeveloper       Duty = "developer"
	DutyAnalyst         Duty = "analyst"
	DutyRequester       Duty = "requester"
	DutyApprover        Duty = "approver"
	DutyOperator        Duty = "operator"
	DutyAuditor         Duty = "auditor"
	DutyConnectionAdmin Duty = "connection-admin"
	DutyPolicyAdmin     Duty = "policy-admin"
	DutyResponder       Duty = "responder"
	DutyMetrics         Duty = "metrics" // a machine's: Prometheus
	DutyAgent           Duty = "agent"
)

// Duties lists every duty, in the order they are shown.
func Duties() []Duty {
	return []Duty{
		DutyAdmin, DutyDeveloper, DutyAnalyst, DutyRequester, DutyApprover, DutyOperator, DutyAuditor,
		DutyConnectionAdmin, DutyPolicyAdmin, DutyResponder, DutyMetrics, DutyAgent,
	}
}

// Valid reports whether d is a known duty.
func (d Duty) Valid() bool {
	return slices.Contains(Duties(), d)
}

// PolicyName is the name of the ACL policy of d for one mount: dbops-requester
// for the mount dbops, team-dbops-requester for team/dbops.
func (d Duty) PolicyName(mount wire.Mount) string {
	return strings.ReplaceAll(strings.Trim(string(mount), "/"), "/", "-") + "-" + string(d)
}

// aclRule is one path stanza of a policy.
type aclRule struct {
	why          string // comment above the stanza
	path         string
	capabilities []string
}

// ACLPolicy returns the text of the ACL policy for d. Paths below the mount are
// built from mount; accessor is that of the auth method agents log in with and
// is used by DutyAgent only.
func ACLPolicy(d Duty, mount wire.Mount, accessor string) (string, error) {
	rules := aclRules(d, strings.Trim(string(mount), "/"), accessor)
	if rules == nil {
		return "", &wire.Error{
			Code: wire.CodeUsage, Reason: fmt.Sprintf("no duty %q", d), Hint: "one of " + dutyNames(),
		}
	}
	if d == DutyAgent && accessor == "" {
		return "", &wire.Error{
			Code: wire.CodeUsage, Reason: "the agent's policy needs the accessor of the auth method agents log in with",
			Hint: "vault auth list",
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s: %s\n", d.PolicyName(mount), dutyPurpose(d))
	for _, rule := range rules {
		b.WriteString("\n")
		if rule.why != "" {
			fmt.Fprintf(&b, "# %s\n", rule.why)
		}
		fmt.Fprintf(&b, "path %q {\n  capabilities = [\"%s\"]\n}\n", rule.path, strings.Join(rule.capabilities, `", "`))
	}
	return b.String(), nil
}

// ofAnotherMount reports whether text is a policy called name that [ACLPolicy] made
// for another mount than this one: two mounts can have duties of one name, such as
// the connection-admin of dbops and the admin of dbops-connection.
func ofAnotherMount(text, name string, mount wire.Mount) bool {
	ours := strings.HasPrefix(strings.TrimSpace(text), "# "+name+": ")
	return ours && !strings.Contains(text, `path "`+strings.Trim(string(mount), "/")+"/")
}

func dutyNames() string {
	names := make([]string, 0, len(Duties()))
	for _, d := range Duties() {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

func dutyPurpose(d Duty) string {
	switch d {
	case DutyAdmin:
		return "does what operators, connection admins, policy admins and auditors do; reads no data and approves nothing."
	case DutyDeveloper:
		return "asks for operations, and gets logins that read and write."
	case DutyAnalyst:
		return "gets logins that read."
	case DutyRequester:
		return "asks for operations and follows its own."
	case DutyApprover:
		return "reviews plans; approves and rejects."
	case DutyOperator:
		return "connects database servers and agents, watches and cancels. Sees no password and no policy write."
	case DutyAuditor:
		return "reads every operation and every setting, changes nothing."
	case DutyConnectionAdmin:
		return "says what operations may know of a connection: labels, protection, purposes."
	case DutyPolicyAdmin:
		return "says who may do which operation where."
	case DutyResponder:
		return "locks down in an emergency, gathers evidence, and lifts what another responder locked."
	case DutyMetrics:
		return "scrapes metrics, and can do nothing else."
	case DutyAgent:
		return "one policy for all agents; each reaches its own paths only."
	default:
		return ""
	}
}

var (
	aclRead   = []string{"read"}
	aclList   = []string{"read", "list"}
	aclUpdate = []string{"create", "update"}
	aclManage = []string{"create", "read", "update", "delete", "list"}
)

// mergeRules puts rules together: each path once, with all that any of them grants.
func mergeRules(sets ...[]aclRule) []aclRule {
	var all []aclRule
	at := make(map[string]int)
	for _, rule := range slices.Concat(sets...) {
		i, known := at[rule.path]
		if !known {
			at[rule.path] = len(all)
			rule.capabilities = slices.Clone(rule.capabilities)
			all = append(all, rule)
			continue
		}
		for _, capability := range rule.capabilities {
			if !slices.Contains(all[i].capabilities, capability) {
				all[i].capabilities = append(all[i].capabilities, capability)
			}
		}
	}
	return all
}

// aclRules is nil for an unknown duty.
func aclRules(d Duty, m, accessor string) []aclRule {
	info := aclRule{path: m + "/info", capabilities: aclRead}
	keys := aclRule{"Public keys of receipts.", m + "/keys", aclRead}
	// ACL paths match by their beginning, so what a role may do begins its name.
	readonly := aclRule{"Logins of roles that are named for what they give.", m + "/creds/readonly-*", aclRead}
	// What auditors read and responders write down.
	reading := []aclRule{
		{"", m + "/config/*", aclList},
		{"", m + "/roles/*", aclList},
		{"", m + "/static-roles/*", aclList},
		{"", m + "/connections/*", aclList},
		{"", m + "/policies/*", aclList},
		{"", m + "/agents", []string{"list"}},
		{"", m + "/agents/", []string{"list"}},
		{"", m + "/agents/+", aclRead},
		{"", m + "/revocations", aclList},
		{"", m + "/revocations/*", aclList},
	}
	switch d {
	case DutyAdmin:
		return mergeRules(
			aclRules(DutyOperator, m, accessor), aclRules(DutyConnectionAdmin, m, accessor),
			aclRules(DutyPolicyAdmin, m, accessor), aclRules(DutyAuditor, m, accessor),
		)
	case DutyDeveloper:
		return mergeRules(
			aclRules(DutyRequester, m, accessor), aclRules(DutyAnalyst, m, accessor),
			[]aclRule{{"", m + "/creds/readwrite-*", aclRead}},
		)
	case DutyAnalyst:
		return []aclRule{readonly, info}
	case DutyRequester:
		return []aclRule{
			{"Asking. Which source and target, policies of the engine decide.", m + "/clone/+/+", aclUpdate},
			{"", m + "/merge/+/+", aclUpdate},
			{"", m + "/migrate/+/+", aclUpdate},
			{"", m + "/backup/+", aclUpdate},
			{"", m + "/restore/+/+", aclUpdate},
			{"Its own operations; a foreign id is answered like a missing one.", m + "/operations", aclList},
			{"", m + "/operations/", aclList},
			{"", m + "/operations/+", aclRead},
			{"", m + "/operations/+/plan", aclRead},
			{"", m + "/operations/+/report", aclRead},
			{"", m + "/operations/+/receipt", aclRead},
			{"", m + "/operations/+/cancel", aclUpdate},
			keys,
			info,
		}
	case DutyApprover:
		return []aclRule{
			{"What its groups may approve, and its own; any other id is answered like a missing one.", m + "/operations", aclList},
			{"", m + "/operations/", aclList},
			{"", m + "/operations/+", aclRead},
			{"", m + "/operations/+/plan", aclRead},
			{"", m + "/operations/+/report", aclRead},
			{"Whose approval counts, policies of the engine say by identity group.", m + "/operations/+/approve", aclUpdate},
			{"", m + "/operations/+/reject", aclUpdate},
			keys,
			info,
		}
	case DutyOperator:
		return []aclRule{
			{"Servers and the roles logins are made from.", m + "/config/*", aclManage},
			{"What Vault does not audit by itself, where no agent acknowledges it.", m + "/facts", aclRead},
			{"", m + "/facts/ack", aclUpdate},
			{"", m + "/roles/*", aclManage},
			{"", m + "/static-roles/*", aclManage},
			{"Rotating credentials and sessions now.", m + "/rotate-root/+", aclUpdate},
			{"", m + "/rotate-role/+", aclUpdate},
			{"", m + "/rotate-all/+", aclUpdate},
			{"", m + "/reset/+", aclUpdate},
			{"", m + "/reload/+", aclUpdate},
			{"", m + "/agents", []string{"list"}},
			{"", m + "/agents/", []string{"list"}},
			{"An agent's settings, not its work protocol below.", m + "/agents/+", aclManage},
			{"Every operation, unfiltered.", m + "/all/operations", aclList},
			{"", m + "/all/operations/*", aclList},
			{"", m + "/all/operations/+/cancel", aclUpdate},
			{"After cleaning a target by hand.", m + "/all/operations/+/acknowledge", aclUpdate},
			{"", m + "/revocations", aclList},
			{"", m + "/revocations/*", aclList},
			{"What is weak.", m + "/posture", aclRead},
			{"", m + "/posture/+", aclRead},
			{"", m + "/metrics", aclRead},
			{"Reading along, not changing.", m + "/connections/*", aclList},
			{"", m + "/policies/*", aclList},
			{"", m + "/settings", aclRead},
			{"Signing receipts with a new key.", m + "/keys/rotate", aclUpdate},
			keys,
			{"", m + "/lockdown", aclRead},
			info,
		}
	case DutyAuditor:
		return slices.Concat([]aclRule{
			{"", m + "/all/operations", aclList},
			{"", m + "/all/operations/*", aclList},
			{"What audit files are verified against.", m + "/chains", aclRead},
			{"What Vault does not audit by itself.", m + "/facts", aclRead},
		}, reading, []aclRule{
			{"", m + "/posture", aclRead},
			{"", m + "/posture/+", aclRead},
			{"", m + "/metrics", aclRead},
			keys,
			info,
			{"Which audit devices exist.", "sys/audit", []string{"read", "sudo"}},
			{"What they show of this mount.", "sys/mounts/" + m + "/tune", aclRead},
			{"", m + "/lockdown", aclRead},
			{"", m + "/settings", aclRead},
		})
	case DutyConnectionAdmin:
		return []aclRule{
			{"", m + "/connections/*", aclManage},
			{"Names to choose from.", m + "/config/*", aclList},
			{"", m + "/roles/*", aclList},
			info,
		}
	case DutyPolicyAdmin:
		return []aclRule{
			{"", m + "/policies/*", aclManage},
			{"Labels to write rules about.", m + "/connections/*", aclList},
			{"For sites with one responder: when who locked may unlock alone.", m + "/lockdown/break-glass", aclManage},
			{"How long operations are kept: evidence is not for operators to shorten.", m + "/settings", []string{"create", "read", "update"}},
			info,
		}
	case DutyResponder:
		return slices.Concat([]aclRule{
			{"Stopping everything, and what is left of it.", m + "/lockdown", []string{"create", "read", "update"}},
			{"Lifting it; the engine refuses who has locked.", m + "/unlock", aclUpdate},
			{"", m + "/lockdown/break-glass", aclRead},
			{"All leases of the mount at once, and whether one is left.", "sys/leases/revoke-prefix/" + m, []string{"update", "sudo"}},
			{"", "sys/leases/lookup/" + m + "/*", []string{"list", "sudo"}},
			{"Evidence.", m + "/all/operations", aclList},
			{"", m + "/all/operations/*", aclList},
		}, reading, []aclRule{
			{"", m + "/settings", aclRead},
			keys,
			info,
		})
	case DutyMetrics:
		return []aclRule{{"", m + "/metrics", aclRead}}
	case DutyAgent:
		// The role's name as metadata of the alias: AppRole sets it at login, so
		// nothing has to be prepared, and an agent cannot change it.
		me := m + "/agents/{{identity.entity.aliases." + accessor + ".metadata.role_name}}"
		return []aclRule{
			{"The work protocol.", me + "/poll", []string{"update"}},
			{"", me + "/operations/*", []string{"create", "read", "update"}},
			{"", me + "/facts", []string{"read", "update"}},
			{
				"Giving back its own leases, an operation at a time; no other prefix is allowed.",
				"sys/leases/revoke-prefix/" + me + "/operations/*",
				[]string{"update", "sudo"},
			},
			{"Keeping leases alive while an operation runs.", "sys/leases/renew", []string{"update"}},
			{"No operation runs when no audit device would see it.", "sys/audit", []string{"read", "sudo"}},
			{"", "sys/mounts/" + m + "/tune", aclRead},
			{"Its own token.", "auth/token/lookup-self", aclRead},
			{"", "auth/token/renew-self", []string{"update"}},
			{"", "auth/token/revoke-self", []string{"update"}},
		}
	default:
		return nil
	}
}
