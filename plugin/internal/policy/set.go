package policy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Set is policies made ready for many decisions: sorted by name, indexed by who
// and what, their globs and windows read once, those that say the same grouped, so
// that it is asked once. It is not changed by anything and may be used by many
// goroutines.
type Set struct {
	policies  []compiled
	labelKeys []string

	everybody members
	byEntity  map[string]members
	byGroup   map[string]members
	everyKind members // those that name no kind
	byKind    map[wire.Kind]members
	source    sideIndex
	target    sideIndex

	final   []ruling // of rules whose refusals waiting cannot lift
	waiting []ruling // of the others
	terms   []sharedTerms
	asking  members // those that ask for agents, approvals or a mask
}

// compiled is one policy of a set.
type compiled struct {
	Policy
	allowed   []wire.Kind
	allowsAny bool
	hours     *Hours
}

// ruling is a rule as the policies of a set have it.
type ruling struct {
	*rule
	// groups are in the order of their limits where the rule has one, so that the
	// first that matches is the strictest and decides for all.
	groups []alike
}

// alike are policies under which a rule decides and answers alike.
type alike struct {
	one      *compiled // any of them
	policies members
}

// sharedTerms are terms and the policies that have them.
type sharedTerms struct {
	terms
	policies members
}

// Compile makes policies ready. It takes any: what [Policy.Validate] would refuse
// restricts as far as it can be read, and permits nothing more for it.
func Compile(policies []Policy) *Set {
	policies = slices.Clone(policies)
	slices.SortStableFunc(policies, func(x, y Policy) int { return strings.Compare(x.Name, y.Name) })
	none := func() members { return newMembers(len(policies)) }
	s := &Set{
		policies: make([]compiled, len(policies)), labelKeys: LabelKeys(policies),
		everybody: none(), byEntity: map[string]members{}, byGroup: map[string]members{},
		everyKind: none(), byKind: map[wire.Kind]members{}, asking: none(),
		source: indexSide(policies, func(p *Policy) ([]string, map[string]string) { return p.Sources, p.SourceLabels }),
		target: indexSide(policies, func(p *Policy) ([]string, map[string]string) { return p.Targets, p.TargetLabels }),
	}
	zones := map[string]*time.Location{}
	for i := range policies {
		s.policies[i] = compile(policies[i], zones)
		s.indexWho(i)
	}
	for _, r := range ruleTable {
		if ruling := s.ruling(r); r.waits {
			s.waiting = append(s.waiting, ruling)
		} else {
			s.final = append(s.final, ruling)
		}
		if r.forGood != nil {
			s.final = append(s.final, s.ruling(r.ofThose(r.forGood)))
		}
	}
	known := map[terms]int{}
	for i := range s.policies {
		t := s.policies[i].terms()
		at, ok := known[t]
		if !ok {
			at = len(s.terms)
			known[t] = at
			s.terms = append(s.terms, sharedTerms{t, none()})
		}
		s.terms[at].policies.add(i)
		if s.policies[i].asks() {
			s.asking.add(i)
		}
	}
	return s
}

// compile reads one policy. Zones are shared by name, so that a face is read once.
func compile(p Policy, zones map[string]*time.Location) compiled {
	c := compiled{Policy: p}
	for _, kind := range p.AllowedOperations {
		c.allowsAny = c.allowsAny || kind == Any
		c.allowed = append(c.allowed, wire.Kind(kind))
	}
	if hours, err := ParseHours(p.AllowedHours, p.AllowedHoursTimeZone); err == nil && hours != nil {
		if zones[p.AllowedHoursTimeZone] == nil {
			zones[p.AllowedHoursTimeZone] = hours.zone
		}
		hours.zone = zones[p.AllowedHoursTimeZone]
		c.hours = hours
	}
	return c
}

// indexWho notes whom and which kinds the policy at that place speaks about.
func (s *Set) indexWho(at int) {
	p := &s.policies[at]
	for _, entity := range p.Entities {
		if entity == Any {
			s.everybody.add(at)
			continue
		}
		addTo(s.byEntity, entity, len(s.policies), at)
	}
	for _, group := range p.Groups {
		addTo(s.byGroup, group, len(s.policies), at)
	}
	if len(p.Operations) == 0 {
		s.everyKind.add(at)
	}
	for _, kind := range p.Operations {
		addTo(s.byKind, kind, len(s.policies), at)
	}
}

func addTo[K comparable](index map[K]members, key K, policies, at int) {
	if index[key] == nil {
		index[key] = newMembers(policies)
	}
	index[key].add(at)
}

// ruling groups the policies that set the rule.
func (s *Set) ruling(r *rule) ruling {
	all := ruling{rule: r}
	known := map[string]int{}
	for i := range s.policies {
		p := &s.policies[i]
		if !r.set(p) {
			continue
		}
		key := r.reads(p)
		at, ok := known[key]
		if !ok {
			at = len(all.groups)
			known[key] = at
			all.groups = append(all.groups, alike{p, newMembers(len(s.policies))})
		}
		all.groups[at].policies.add(i)
	}
	slices.SortFunc(all.groups, func(x, y alike) int {
		if r.limit != nil {
			return cmp.Compare(r.limit(x.one), r.limit(y.one))
		}
		return cmp.Compare(r.reads(x.one), r.reads(y.one))
	})
	return all
}

// Policies returns the policies of the set, by name.
func (s *Set) Policies() []Policy {
	all := make([]Policy, len(s.policies))
	for i := range s.policies {
		all[i] = s.policies[i].Policy
	}
	return all
}

// LabelKeys returns, sorted, every label key that any of the policies selects
// connections by.
func LabelKeys(policies []Policy) []string {
	var keys []string
	for _, p := range policies {
		for _, labels := range []map[string]string{p.SourceLabels, p.TargetLabels} {
			for key := range labels {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
