package auditlog

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Filter says which events and facts to find; its zero value finds all of ours.
type Filter struct {
	Operation  string        // id
	Agent      string        // name
	User       string        // entity id or name of who asked
	Connection string        // source or target, or that of a fact
	Type       string        // a word of [wire.EventWords]
	Severity   wire.Severity // and above
	Outcome    wire.Outcome
	// Since and Until bound the time that is told, or that of the entry, which is
	// Vault's: an agent tells what it likes. Since is within, Until is not.
	Since, Until time.Time
	// All finds what does not count too, told as such.
	All bool
}

// Hit is one event or fact that was found.
type Hit struct {
	Event *wire.Event `json:"event,omitempty"`
	Fact  *wire.Fact  `json:"fact,omitempty"`
	// Standing is Ours unless the filter wants all; Why then says why not.
	Standing Standing `json:"standing"`
	Why      string   `json:"why,omitempty"`
	Place    Place    `json:"place"`
}

// matches reports whether the filter wants a hit. It is pure.
func (f Filter) matches(h Hit) bool {
	var about struct {
		at                   time.Time
		op, agent, outcome   string
		users, places, words []string
		severity             wire.Severity
		eventType            wire.EventType
		phase                wire.Step
		kind                 wire.Kind
	}
	if e := h.Event; e != nil {
		about.at, about.op, about.agent, about.outcome, about.severity = e.T, e.OpID, e.Agent, e.Outcome, e.Severity
		about.users, about.places = []string{e.User.EntityID, e.User.Name}, []string{e.Source, e.Target}
		about.eventType, about.phase, about.kind = e.EventType, e.Phase, e.Operation
	} else if x := h.Fact; x != nil {
		about.at, about.op, about.agent, about.outcome, about.severity = x.T, x.OpID, x.Agent, x.Outcome, x.Severity
		about.users, about.places, about.eventType = []string{x.EntityID}, []string{x.Connection}, x.EventType
	}
	is := func(wanted, value string) bool { return wanted == "" || wanted == value }
	oneOf := func(wanted string, values []string) bool { return wanted == "" || slices.Contains(values, wanted) }
	return is(f.Operation, about.op) && is(f.Agent, about.agent) && is(f.Outcome, about.outcome) &&
		oneOf(f.User, about.users) && oneOf(f.Connection, about.places) &&
		(f.Type == "" || slices.Contains(wire.EventWords(about.eventType, about.phase, about.kind), string(wire.EventType(f.Type).Canonical()))) &&
		(f.Severity == "" || about.severity.Level() >= f.Severity.Level()) &&
		(f.during(about.at) || f.during(h.Place.Time))
}

// during reports whether the filter wants what was at that time.
func (f Filter) during(at time.Time) bool {
	return (f.Since.IsZero() || !at.Before(f.Since)) && (f.Until.IsZero() || at.Before(f.Until))
}

// searcher is one run of [Search].
type searcher struct {
	filter Filter
	tell   func(Hit) error
	known  map[string]struct{} // hashes of the last hits, to leave copies out
	order  []string
	failed error
}

// Search reads files and calls tell for each event and fact that the filter wants,
// once, in the order of the files' times. An error of tell ends the search. Entries
// are judged one by one as [Verify] does; whether the chain is whole only [Verify]
// says.
func Search(ctx context.Context, anchors Anchors, inputs []Input, filter Filter, tell func(Hit) error) ([]FileFacts, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s := &searcher{filter: filter, tell: tell, known: make(map[string]struct{})}
	damaged := func(d damage) {
		if d.rest && s.failed == nil { // nobody shall take the rest for searched
			s.failed = &wire.Error{Code: wire.CodeConfig, Reason: fmt.Sprintf("%s: %s", d.place, d.why), Hint: "leave the file out, or see with dbops audit verify what is missing"}
			stop(s.failed)
		}
	}
	facts, err := read(ctx, inputs, damaged, func(e *entry) {
		if s.failed == nil {
			if s.failed = s.take(judge(anchors, e), e); s.failed != nil {
				stop(s.failed)
			}
		}
	})
	if err == nil {
		err = s.failed
	}
	return facts, err
}

func (s *searcher) take(judged verdict, e *entry) error {
	if judged.standing != Ours && !(s.filter.All && e.Type == typeResponse) {
		return nil
	}
	items := judged.items
	if judged.standing != Ours && items == nil {
		items = looselyRead(e)
	}
	for _, it := range items {
		h := Hit{Event: it.event, Fact: it.fact, Standing: judged.standing, Why: judged.why, Place: e.place}
		if !s.filter.matches(h) || s.copied(string(judged.standing)+it.hash) {
			continue
		}
		if err := s.tell(h); err != nil {
			return err
		}
	}
	return nil
}

// looselyRead is what can be read of an entry that does not count.
func looselyRead(e *entry) []item {
	list, ok := texts(e.Request.Data[wire.EventsKey])
	if !ok {
		return nil
	}
	items, _ := readEvents(list)
	return items
}

// copied notes a hash and reports whether it was among the last ones.
func (s *searcher) copied(hash string) bool {
	if _, known := s.known[hash]; known {
		return true
	}
	if len(s.order) >= recentKept {
		delete(s.known, s.order[0])
		s.order = s.order[1:]
	}
	s.known[hash] = struct{}{}
	s.order = append(s.order, hash)
	return false
}
