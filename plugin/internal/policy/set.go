package policy

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Set is policies made ready for many decisions: sorted by name, indexed by who
// and by kind, their globs and windows read once. It is not changed by anything
// and may be used by many goroutines.
type Set struct {
	policies  []compiled
	globs     globs
	labelKeys []string

	everybody members
	byEntity  map[string]members
	byGroup   map[string]members
	everyKind members // those that name no kind
	byKind    map[wire.Kind]members

	zones map[string]*time.Location // one per name, so that a face is read once

	rules  ruleBits        // those that some policy sets
	lowest [maxRules]int64 // of those with a limit, the lowest
}

// maxRules is the room for rules in a [ruleBits].
const maxRules = 32

// compiled is one policy of a set.
type compiled struct {
	Policy
	source, target selector
	allowed        []wire.Kind
	allowsAny      bool
	hours          *Hours
	rules          ruleBits // those that can refuse
}

// ruleBits are places in ruleTable, a bit each.
type ruleBits uint32

var (
	ruleTable = rules()
	waiting   = func() (bits ruleBits) {
		for i, r := range ruleTable {
			if r.waits {
				bits |= 1 << i
			}
		}
		return bits
	}()
)

// live are the rules that can refuse the request under some policy of the set.
func (s *Set) live(f *facts) (bits ruleBits) {
	for i, r := range ruleTable {
		if s.rules&(1<<i) != 0 && (r.limit == nil && r.live(f) || r.limit != nil && r.level(f) >= s.lowest[i]) {
			bits |= 1 << i
		}
	}
	return bits
}

// members are positions in a set, a bit each.
type members []uint64

func (m members) add(at int)      { m[at/64] |= 1 << (at % 64) }
func (m members) has(at int) bool { return m[at/64]&(1<<(at%64)) != 0 }

// Compile makes policies ready. It takes any: what [Policy.Validate] would refuse
// restricts as far as it can be read, and permits nothing more for it.
func Compile(policies []Policy) *Set {
	policies = slices.Clone(policies)
	slices.SortStableFunc(policies, func(x, y Policy) int { return strings.Compare(x.Name, y.Name) })
	s := &Set{
		policies: make([]compiled, len(policies)), labelKeys: LabelKeys(policies), globs: globs{ids: map[string]int{}},
		byEntity: map[string]members{}, byGroup: map[string]members{}, byKind: map[wire.Kind]members{},
		zones: map[string]*time.Location{},
	}
	words := (len(policies) + 63) / 64
	s.everybody, s.everyKind = make(members, words), make(members, words)
	for i, p := range policies {
		s.policies[i] = s.compile(p)
		for _, entity := range p.Entities {
			if entity == Any {
				s.everybody.add(i)
				continue
			}
			addTo(s.byEntity, entity, words, i)
		}
		for _, group := range p.Groups {
			addTo(s.byGroup, group, words, i)
		}
		if len(p.Operations) == 0 {
			s.everyKind.add(i)
		}
		for _, kind := range p.Operations {
			addTo(s.byKind, kind, words, i)
		}
	}
	return s
}

// Policies returns the policies of the set, by name.
func (s *Set) Policies() []Policy {
	all := make([]Policy, len(s.policies))
	for i := range s.policies {
		all[i] = s.policies[i].Policy
	}
	return all
}

func addTo[K comparable](index map[K]members, key K, words, at int) {
	if index[key] == nil {
		index[key] = make(members, words)
	}
	index[key].add(at)
}

func (s *Set) compile(p Policy) compiled {
	c := compiled{
		Policy: p,
		source: selector{s.globs.all(p.Sources), s.globs.labels(p.SourceLabels, s.labelKeys)},
		target: selector{s.globs.all(p.Targets), s.globs.labels(p.TargetLabels, s.labelKeys)},
	}
	for _, kind := range p.AllowedOperations {
		c.allowsAny = c.allowsAny || kind == Any
		c.allowed = append(c.allowed, wire.Kind(kind))
	}
	if hours, err := ParseHours(p.AllowedHours, p.AllowedHoursTimeZone); err == nil && hours != nil {
		if s.zones[p.AllowedHoursTimeZone] == nil {
			s.zones[p.AllowedHoursTimeZone] = hours.zone
		}
		hours.zone = s.zones[p.AllowedHoursTimeZone]
		c.hours = hours
	}
	for i, r := range ruleTable {
		if !r.set(&c) {
			continue
		}
		if r.limit != nil && (s.rules&(1<<i) == 0 || r.limit(&c) < s.lowest[i]) {
			s.lowest[i] = r.limit(&c)
		}
		c.rules |= 1 << i
		s.rules |= 1 << i
	}
	return c
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

// Evaluate decides. The answer names every policy that matched and, on a refusal,
// the policy and the rule. A refusal that waiting cannot lift wins over one that
// it can; among those the latest RetryAt is told.
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
	e := begin(r)
	defer e.end()
	if missing, key := s.lookUp(e); missing != nil {
		return unclassified(missing, key)
	}
	matching, asAsked := s.matching(e)
	if !asAsked {
		return unspoken(&e.r, names(matching))
	}
	e.facts = look(&e.r, now)
	live := s.live(&e.facts)
	allowed := wire.Decision{Allowed: true, Policies: names(matching), Reason: "allowed by every matching policy", Preview: true}
	for _, p := range matching {
		for left := p.rules & live &^ waiting; left != 0; left &= left - 1 {
			if r := ruleTable[bits.TrailingZeros32(uint32(left))]; r.refuses(p, &e.facts) {
				return p.refusal(r, &e.facts, allowed.Policies)
			}
		}
		p.oblige(&allowed, r.Kind)
	}
	var limited *wire.Decision
	for _, p := range matching {
		for left := p.rules & live & waiting; left != 0; left &= left - 1 {
			r := ruleTable[bits.TrailingZeros32(uint32(left))]
			if !r.refuses(p, &e.facts) {
				continue
			}
			d := p.refusal(r, &e.facts, allowed.Policies)
			if limited == nil || d.RetryAt.After(limited.RetryAt) {
				limited = &d
			}
		}
	}
	if limited != nil {
		return *limited
	}
	return allowed
}

func (p *compiled) refusal(r *rule, f *facts, matching []string) wire.Decision {
	d := r.refusal(p, f)
	d.Policies, d.Policy, d.Rule = matching, p.Name, r.name
	return d
}

// oblige adds what the policy asks of an operation that it permits.
func (p *compiled) oblige(d *wire.Decision, kind wire.Kind) {
	d.MaxBytes = stricter(d.MaxBytes, p.MaxBytes)
	d.MaxRows = stricter(d.MaxRows, p.MaxRows)
	d.MaxDuration = stricter(d.MaxDuration, p.MaxDuration)
	d.RequireTLS = d.RequireTLS || p.RequireTLS
	if len(p.Agents) > 0 || len(p.AgentLabels) > 0 {
		d.Agents = append(d.Agents, wire.AgentNeed{Policy: p.Name, Names: p.Agents, Labels: p.AgentLabels})
	}
	if a := p.Approvals; a != nil && a.Count > 0 {
		d.Approvals = append(d.Approvals, wire.ApprovalNeed{Policy: p.Name, Count: a.Count, Groups: a.Groups, TTL: a.TTL})
	}
	if p.Mask != "" && !slices.Contains(d.Masks, p.Mask) {
		d.Masks = append(d.Masks, p.Mask)
	}
	if undecided := p.undecided(); d.UndecidedColumns != UndecidedStop && undecided != "" {
		d.UndecidedColumns = undecided
	}
	d.Preview = d.Preview && p.Preview
	if kind == wire.KindClone {
		d.CloneTTL = stricter(d.CloneTTL, p.CloneTTL)
	}
}

// stricter returns the smaller of two limits, of which 0 means none.
func stricter[T int64 | time.Duration](a, b T) T {
	if b <= 0 || (a > 0 && a < b) {
		return a
	}
	return b
}

func names(policies []*compiled) []string {
	if len(policies) == 0 {
		return nil
	}
	all := make([]string, len(policies))
	for i, p := range policies {
		all[i] = p.Name
	}
	return all
}

// matching returns the policies that speak about the request, and whether one of
// them does so by the names that were asked for, not only by another name of the
// same database.
func (s *Set) matching(e *evaluation) (all []*compiled, asAsked bool) {
	all = e.matching[:0]
	s.candidates(&e.r, func(p *compiled) bool {
		source, firstSource := p.source.matches(&s.globs, e.source)
		if !source {
			return true
		}
		target, firstTarget := p.target.matches(&s.globs, e.target)
		if !target {
			return true
		}
		all = append(all, p)
		e.matching = all
		asAsked = asAsked || (firstSource && firstTarget)
		return true
	})
	return all, asAsked
}

// candidates calls yield, in order, for the policies that speak about who asks and
// the kind, until it says false.
func (s *Set) candidates(r *Request, yield func(*compiled) bool) {
	entity, kind := s.byEntity[r.Entity], s.byKind[r.Kind]
	for word := range s.everybody {
		who := s.everybody[word]
		if entity != nil {
			who |= entity[word]
		}
		for _, group := range r.Groups {
			if in := s.byGroup[group]; in != nil {
				who |= in[word]
			}
		}
		what := s.everyKind[word]
		if kind != nil {
			what |= kind[word]
		}
		for left := who & what; left != 0; left &= left - 1 {
			if !yield(&s.policies[word*64+bits.TrailingZeros64(left)]) {
				return
			}
		}
	}
}

// Foreclosed tells, from the names in the request alone, whether [Set.Evaluate]
// can only come to the default denial, which it then returns: no policy speaks of
// this entity, this kind and these names, whatever the labels. Asked first, it
// keeps those nobody gave anything from learning which connections exist.
func (s *Set) Foreclosed(r Request) (wire.Decision, bool) {
	open := false
	e := begin(r)
	defer e.end()
	s.lookUp(e)
	named := func(side *selector, names []name) bool {
		return len(names) == 0 || side.named(&s.globs, &names[0].name)
	}
	s.candidates(&r, func(p *compiled) bool {
		open = named(&p.source, e.source) && named(&p.target, e.target)
		return !open
	})
	if open {
		return wire.Decision{}, false
	}
	return unspoken(&r, nil), true
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

// evaluation is one request on its way through a set, in one piece of memory.
type evaluation struct {
	r              Request
	source, target []name // the names of both sides with their labels looked up
	facts          facts

	// Memory that is used again, so that a decision leaves nothing behind but its
	// answer.
	names    []name
	values   []text
	said     []verdict
	matching []*compiled
}

var evaluations = sync.Pool{New: func() any { return new(evaluation) }}

func begin(r Request) *evaluation {
	e, ok := evaluations.Get().(*evaluation)
	if !ok {
		e = new(evaluation)
	}
	e.r = r
	return e
}

// end gives the memory back, with nothing of the request in it.
func (e *evaluation) end() {
	clear(e.names)
	clear(e.values)
	clear(e.said)
	clear(e.matching)
	*e = evaluation{names: e.names[:0], values: e.values[:0], said: e.said[:0], matching: e.matching[:0]}
	evaluations.Put(e)
}

// lookUp looks up the labels. It returns the first name of either database, and the key, that
// lacks a label key which a policy mentions: a label taken away must not take a
// name out of a policy.
func (s *Set) lookUp(e *evaluation) (missing *Connection, key string) {
	count := len(e.r.Source) + len(e.r.Target)
	names := slices.Grow(e.names[:0], count)
	// Names hold parts of it, so it must not move.
	values := slices.Grow(e.values[:0], count*len(s.labelKeys))
	e.said = slices.Grow(e.said[:0], count*(1+len(s.labelKeys))*len(s.globs.patterns))
	e.said = e.said[:cap(e.said)]
	said := e.said
	textOf := func(content string) text {
		t := text{content, said[:len(s.globs.patterns):len(s.globs.patterns)]}
		said = said[len(s.globs.patterns):]
		return t
	}
	for _, side := range [2][]Connection{e.r.Source, e.r.Target} {
		for i := range side {
			begin := len(values)
			for _, k := range s.labelKeys {
				value, ok := side[i].Labels[k]
				if !ok && missing == nil {
					missing, key = &side[i], k
				}
				values = append(values, textOf(value))
			}
			names = append(names, name{textOf(side[i].Name), values[begin:len(values):len(values)]})
		}
	}
	e.names, e.values = names, values
	e.source, e.target = names[:len(e.r.Source)], names[len(e.r.Source):]
	return missing, key
}

func unclassified(c *Connection, key string) wire.Decision {
	return wire.Decision{
		Code: wire.CodeUnclassified, Rule: RuleLabels,
		Reason: fmt.Sprintf("connection %s has no label %q, which policies mention", c.Name, key),
	}
}
