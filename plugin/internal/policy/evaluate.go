package policy

import (
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Evaluate decides. The answer names every policy that matched and, on a refusal,
// the policy and the rule. A refusal that waiting cannot lift wins over one that
// it can; among those the latest RetryAt is told, and of one limit the strictest.
func Evaluate(policies []Policy, r Request, now time.Time) wire.Decision {
	return Compile(policies).Evaluate(r, now)
}

// Evaluate is [Evaluate] of the set's policies.
func (s *Set) Evaluate(r Request, now time.Time) wire.Decision {
	if r.Entity == "" {
		return wire.Decision{
			Code: wire.CodeNoIdentity, Rule: RuleRequireAuthentication,
			Reason: "an operation needs an identity: the token has no entity",
		}
	}
	if missing, key := s.unlabelled(&r); missing != nil {
		return unclassified(missing, key)
	}
	e := s.begin(r)
	defer e.end()
	s.match(e)
	matching := s.namesOf(e.matching)
	if e.asked.count() == 0 {
		return unspoken(&e.r, matching)
	}
	e.facts.look(&e.r, now)
	p, rule := s.refusedForGood(e)
	if rule == nil {
		p, rule = s.refusedForNow(e)
	}
	var d wire.Decision
	if rule == nil {
		d = s.permission(e)
	} else {
		d = rule.refuse(p, &e.facts)
		d.Policy, d.Rule = p.Name, rule.name
	}
	d.Policies = matching
	return d
}

// speaking yields, if the rule can refuse now, the policies to hold it against, one of
// those that say the same with the place of the first: of policies with a limit only
// the strictest.
func (r *ruling) speaking(e *evaluation) iter.Seq2[int, *compiled] {
	return func(yield func(int, *compiled) bool) {
		if !r.live(&e.facts) {
			return
		}
		for _, g := range r.groups {
			at := g.policies.firstIn(e.matching)
			if at < 0 {
				continue
			}
			if !yield(at, g.one) || r.limit != nil {
				return
			}
		}
	}
}

// refusedForGood returns the first policy that refuses whatever the time, and the
// first of its rules that does; nil when none does.
func (s *Set) refusedForGood(e *evaluation) (p *compiled, by *rule) {
	first := len(s.policies)
	for i := range s.final {
		r := &s.final[i]
		for at, one := range r.speaking(e) {
			if at < first && r.refuses(one, &e.facts) {
				first, by = at, r.rule
			}
		}
	}
	return s.refusal(first, by)
}

// refusedForNow returns the policy that refuses the longest, the first one of
// several, and by which rule; nil when none does.
func (s *Set) refusedForNow(e *evaluation) (p *compiled, by *rule) {
	var first int
	var last time.Time
	for i := range s.waiting {
		r := &s.waiting[i]
		for at, one := range r.speaking(e) {
			if !r.refuses(one, &e.facts) {
				continue
			}
			until := r.until(one, &e.facts)
			if by == nil || until.After(last) || until.Equal(last) && at < first {
				first, by, last = at, r.rule, until
			}
		}
	}
	return s.refusal(first, by)
}

func (s *Set) refusal(at int, by *rule) (*compiled, *rule) {
	if by == nil {
		return nil, nil
	}
	return &s.policies[at], by
}

// permission is the answer when no policy refuses: all that they ask for.
func (s *Set) permission(e *evaluation) wire.Decision {
	d := wire.Decision{Allowed: true, Reason: "allowed by every matching policy", Preview: true}
	for i := range s.terms {
		if t := &s.terms[i]; t.policies.meet(e.matching) {
			t.add(&d, e.r.Kind)
		}
	}
	if s.asking.meet(e.matching) {
		for at := range e.matching.all() {
			s.policies[at].ask(&d)
		}
	}
	return d
}

func (s *Set) namesOf(policies members) []string {
	count := policies.count()
	if count == 0 {
		return nil
	}
	names := make([]string, 0, count)
	for at := range policies.all() {
		names = append(names, s.policies[at].Name)
	}
	return names
}

// Foreclosed tells, from the names in the request alone, whether [Set.Evaluate]
// can only come to the default denial, which it then returns: no policy speaks of
// this entity, this kind and these names, whatever the labels. Asked first, it
// keeps those nobody gave anything from learning which connections exist.
func (s *Set) Foreclosed(r Request) (wire.Decision, bool) {
	e := s.begin(r)
	defer e.end()
	s.speakTo(&e.r, e.matching, e.chosen)
	if len(r.Source) > 0 {
		s.source.named(r.Source[0].Name, e.matching, e.chosen)
		e.matching.keep(e.chosen)
	}
	if len(r.Target) > 0 {
		s.target.named(r.Target[0].Name, e.matching, e.chosen)
		e.matching.keep(e.chosen)
	}
	if e.matching.count() > 0 {
		return wire.Decision{}, false
	}
	return unspoken(&e.r, nil), true
}

func unspoken(r *Request, names []string) wire.Decision {
	return wire.Decision{
		Code: wire.CodeDenied, Rule: RuleDefaultDeny, Policies: names,
		Reason: fmt.Sprintf("no policy allows this entity to %s %s", r.Kind, describe(r)),
	}
}

func describe(r *Request) string {
	switch {
	case len(r.Source) > 0 && len(r.Target) > 0:
		return r.Source[0].Name + " to " + r.Target[0].Name
	case len(r.Source) > 0:
		return r.Source[0].Name
	case len(r.Target) > 0:
		return "to " + r.Target[0].Name
	default:
		return "nothing"
	}
}

// unlabelled returns the first name of either database, and the key, that lacks a
// label key which a policy mentions: a label taken away must not take a name out of
// a policy.
func (s *Set) unlabelled(r *Request) (missing *Connection, key string) {
	for _, side := range [2][]Connection{r.Source, r.Target} {
		for i := range side {
			for _, key := range s.labelKeys {
				if _, ok := side[i].Labels[key]; !ok {
					return &side[i], key
				}
			}
		}
	}
	return nil, ""
}

func unclassified(c *Connection, key string) wire.Decision {
	return wire.Decision{
		Code: wire.CodeUnclassified, Rule: RuleLabels,
		Reason: fmt.Sprintf("connection %s has no label %q, which policies mention", c.Name, key),
	}
}

// evaluation is one request on its way through a set, in memory that is used again,
// so that a decision leaves nothing behind but its answer.
type evaluation struct {
	r     Request
	facts facts

	matching members // policies that speak about the request
	asked    members // those of them that do so by the names asked for

	chosen, first, spare members // of one side, while matching

	words []uint64 // what all of them are made of
}

var evaluations = sync.Pool{New: func() any { return new(evaluation) }}

func (s *Set) begin(r Request) *evaluation {
	e, ok := evaluations.Get().(*evaluation)
	if !ok {
		e = new(evaluation)
	}
	e.r = r
	words := len(s.everybody)
	e.words = slices.Grow(e.words[:0], 5*words)[:5*words]
	for i, m := range [5]*members{&e.matching, &e.asked, &e.chosen, &e.first, &e.spare} {
		*m = e.words[i*words : (i+1)*words : (i+1)*words]
	}
	return e
}

// end gives the memory back, with nothing that leads to the request.
func (e *evaluation) end() {
	*e = evaluation{words: e.words, facts: facts{times: e.facts.times}}
	evaluations.Put(e)
}
