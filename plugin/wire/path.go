package wire

import (
	"regexp"
	"strings"
)

// DefaultMount is where dbops is mounted unless said otherwise.
const DefaultMount = "dbops"

// AgentNamePattern is what an agent may be called. It is narrow because the name
// stands in ACL templates: an entity value "+" would open every agent's paths.
const AgentNamePattern = `[a-z0-9-]{1,63}`

var agentName = regexp.MustCompile(`^` + AgentNamePattern + `$`)

// ValidAgentName reports whether name may name an agent.
func ValidAgentName(name string) bool { return agentName.MatchString(name) }

// Paths below one mount. A Mount has no leading or trailing slash.
type Mount string

func (m Mount) join(parts ...string) string {
	return strings.Trim(string(m), "/") + "/" + strings.Join(parts, "/")
}

// Request is where an operation is asked for.
func (m Mount) Request(kind Kind, source, target string) string {
	return m.join(string(kind), source, target)
}

// Operation is an operation as its requester sees it.
func (m Mount) Operation(id string) string { return m.join("operations", id) }

// Operations lists the caller's own.
func (m Mount) Operations() string { return m.join("operations") }

// Cancel is where an operation is cancelled.
func (m Mount) Cancel(id string) string { return m.join("operations", id, "cancel") }

// AllOperations is the unfiltered list, for auditors and operators.
func (m Mount) AllOperations() string { return m.join("all", "operations") }

// Posture is what is weak about the mount, or about one connection when it is
// named.
func (m Mount) Posture(connection string) string {
	if connection == "" {
		return m.join("posture")
	}
	return m.join("posture", connection)
}

// Poll is where an agent asks for work.
func (m Mount) Poll(agent string) string { return m.join("agents", agent, "poll") }

// AgentOperation is the prefix of everything an agent may touch of an operation,
// its leases included.
func (m Mount) AgentOperation(agent, id string) string {
	return m.join("agents", agent, "operations", id)
}

// Accounts is where an agent leases an account. Purpose inspect has a path of
// its own, so that audit devices show which kind was asked for.
func (m Mount) Accounts(agent, id string, purpose Purpose, side Side) string {
	if purpose == PurposeInspect {
		return m.join("agents", agent, "operations", id, "accounts", "inspect", string(side))
	}
	return m.join("agents", agent, "operations", id, "accounts", string(side))
}

// Plan is where an agent sends a plan or a shape.
func (m Mount) Plan(agent, id string) string {
	return m.join("agents", agent, "operations", id, "plan")
}

// Events is where an agent sends events.
func (m Mount) Events(agent, id string) string {
	return m.join("agents", agent, "operations", id, "events")
}

// Finish is where an agent ends a claim.
func (m Mount) Finish(agent, id string) string {
	return m.join("agents", agent, "operations", id, "finish")
}

// Chains is where the ends of all chains are read.
func (m Mount) Chains() string { return m.join("chains") }

// AgentFacts is where an agent fetches facts and acknowledges them.
func (m Mount) AgentFacts(agent string) string { return m.join("agents", agent, "facts") }

// RevokePrefix is the one path by which an agent ends its own leases.
func (m Mount) RevokePrefix(agent, id string) string {
	return "sys/leases/revoke-prefix/" + m.AgentOperation(agent, id)
}
