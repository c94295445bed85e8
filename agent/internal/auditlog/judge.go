package auditlog

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Anchors are what files are held against, as Vault tells it at the path chains. An
// empty MountAccessor believes whatever mount is found first.
type Anchors = wire.Chains

// Standing is what an entry is to us.
type Standing string

// The standings.
const (
	// Ours is an entry that counts.
	Ours Standing = "ours"
	// Asked is the request half of an entry: a witness, not proof.
	Asked Standing = "asked"
	// Refused was answered with an error, so the plugin took nothing of it.
	Refused Standing = "refused"
	// Foreign holds the key on another mount or path, where anybody may write it.
	Foreign Standing = "foreign"
	// Forged stands where only the plugin could have let it, and it would not have.
	Forged Standing = "forged"
	// Hidden holds hashes in place of events: the mount was not tuned.
	Hidden Standing = "hidden"
)

// item is one event or fact.
type item struct {
	text  string
	hash  string
	at    position
	prev  string
	event *wire.Event
	fact  *wire.Fact
}

// verdict is the judgement about one entry.
type verdict struct {
	standing Standing
	why      string // not for Ours
	chain    string // agent's name, or factsChain
	entity   string // who sent it
	items    []item
	// answered is the end of the chain as Vault answered it; zero for facts.
	answered wire.Chain
}

// factsChain is the chain of the mount's facts. No agent can have the name.
const factsChain = "(facts)"

var (
	eventsPath = regexp.MustCompile(`^agents/(` + wire.AgentNamePattern + `)/operations/([^/]+)/events$`)
	factsPath  = regexp.MustCompile(`^(?:agents/` + wire.AgentNamePattern + `/)?facts/?$`)
)

// judge decides what an entry is to us. It is a function of the entry and the
// anchors alone.
func judge(anchors Anchors, e *entry) verdict {
	eventTexts, hasEvents := e.Request.Data[wire.EventsKey]
	factTexts, hasFacts := e.Response.Data[wire.FactsKey]
	rest := strings.TrimPrefix(e.Request.Path, e.Request.MountPoint)
	mine := anchors.MountAccessor == "" || e.Request.MountAccessor == anchors.MountAccessor
	switch {
	case !hasEvents && !hasFacts:
		return verdict{standing: Foreign, why: "the key does not stand where events or facts do"}
	case !mine:
		return verdict{standing: Foreign, why: "it was written on another mount, " + e.Request.MountPoint}
	case hasEvents:
		found := eventsPath.FindStringSubmatch(rest)
		if found == nil {
			return verdict{standing: Foreign, why: "it was written on a path that takes no events"}
		}
		return judgeEvents(anchors, e, found[1], found[2], eventTexts)
	case !factsPath.MatchString(rest):
		return verdict{standing: Foreign, why: "it was read on a path that answers no facts"}
	default:
		return judgeFacts(e, factTexts)
	}
}

func judgeEvents(anchors Anchors, e *entry, agent, operation string, content json.RawMessage) verdict {
	v := verdict{chain: agent, entity: e.Auth.EntityID}
	is := func(standing Standing, format string, args ...any) verdict {
		v.standing, v.why = standing, fmt.Sprintf(format, args...)
		return v
	}
	if e.Error != "" {
		return is(Refused, "the plugin refused it: %s", e.Error)
	}
	list, ok := texts(content)
	if ok {
		v.items, ok = readEvents(list)
	}
	hidden := len(list) > 0 && strings.HasPrefix(list[0], "hmac-")
	switch {
	case e.Type == typeRequest:
		return is(Asked, "it is the request, not the answer")
	case e.Type != typeResponse:
		return is(Foreign, "an entry of type %q", e.Type)
	case hidden:
		return is(Hidden, "the audit device hashed the events of agent %s: the mount was not tuned", agent)
	case !ok:
		return is(Forged, "what stands on the path of agent %s is no list of events", agent)
	}
	known, registered := anchors.Agents[agent]
	switch {
	case anchors.Agents != nil && !registered:
		return is(Forged, "Vault knows no chain of an agent %s", agent)
	case len(known.Entities) > 0 && !slices.Contains(known.Entities, v.entity):
		return is(Forged, "it came from entity %q, which never wrote events of agent %s", v.entity, agent)
	case v.entity == "":
		return is(Forged, "it came from nobody: the plugin takes no events of agent %s without an identity", agent)
	}
	for _, each := range v.items {
		if each.event.Agent != agent {
			return is(Forged, "the path is that of agent %s, event %s is of agent %q", agent, each.at, each.event.Agent)
		}
		if each.event.OpID != operation {
			return is(Forged, "the path is that of operation %s, event %s is about %q", operation, each.at, each.event.OpID)
		}
	}
	v.standing = Ours
	v.answered = wire.Chain{Epoch: textOf(e.Response.Data, "epoch"), Seq: textOf(e.Response.Data, "seq"), Head: textOf(e.Response.Data, "head")}
	return v
}

// readEvents decodes a batch; false when one of it is no event.
func readEvents(list []string) ([]item, bool) {
	items := make([]item, len(list))
	for i, text := range list {
		var e wire.Event
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return nil, false
		}
		at, err := parsePosition(e.Epoch, e.Seq)
		if err != nil {
			return nil, false
		}
		items[i] = item{text: text, hash: wire.EventHash(text), at: at, prev: e.Prev, event: &e}
	}
	return items, len(items) > 0
}

// judgeFacts judges an answer with facts. It comes from the plugin whoever asked.
func judgeFacts(e *entry, content json.RawMessage) verdict {
	v := verdict{chain: factsChain, entity: e.Auth.EntityID}
	list, ok := texts(content)
	switch {
	case e.Error != "":
		v.standing, v.why = Refused, "the plugin refused it: "+e.Error
		return v
	case e.Type != typeResponse:
		v.standing, v.why = Foreign, fmt.Sprintf("an entry of type %q", e.Type)
		return v
	case ok && len(list) > 0 && strings.HasPrefix(list[0], "hmac-"):
		v.standing, v.why = Hidden, "the audit device hashed the facts: the mount was not tuned"
		return v
	}
	for _, text := range list {
		var f wire.Fact
		err := json.Unmarshal([]byte(text), &f)
		var at position
		if err == nil {
			at, err = parsePosition("1", f.Seq)
		}
		if err != nil {
			ok = false
			break
		}
		v.items = append(v.items, item{text: text, hash: wire.EventHash(text), at: at, prev: f.Prev, fact: &f})
	}
	v.standing = Ours
	if !ok {
		v.standing, v.why, v.items = Forged, "what was answered is no list of facts", nil
	}
	return v
}
