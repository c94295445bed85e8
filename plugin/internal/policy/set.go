package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
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

// refusedForGood returns the first policy that refuses whatever the time, and the
// first of its rules that does; nil when none does. Of policies with a limit only
// the strictest counts.
func (s *Set) refusedForGood(e *evaluation) (p *compiled, by *rule) {
	first := len(s.policies)
	for i := range s.final {
		r := &s.final[i]
		if !r.live(&e.facts) {
			continue
		}
		for _, g := range r.groups {
			at := g.policies.firstIn(e.matching)
			if at < 0 {
				continue
			}
			if at < first && r.refuses(g.one, &e.facts) {
				first, by = at, r.rule
			}
			if r.limit != nil {
				break
			}
		}
	}
	if by == nil {
		return nil, nil
	}
	return &s.policies[first], by
}

// refusedForNow returns the policy that refuses the longest, the first one of
// several, and by which rule; nil when none does.
func (s *Set) refusedForNow(e *evaluation) (p *compiled, by *rule) {
	var first int
	var last time.Time
	for i := range s.waiting {
		r := &s.waiting[i]
		if !r.live(&e.facts) {
			continue
		}
		for _, g := range r.groups {
			at := g.policies.firstIn(e.matching)
			if at < 0 {
				continue
			}
			if r.refuses(g.one, &e.facts) {
				until := r.until(g.one, &e.facts)
				if by == nil || until.After(last) || until.Equal(last) && at < first {
					first, by, last = at, r.rule, until
				}
			}
			if r.limit != nil {
				break
			}
		}
	}
	if by == nil {
		return nil, nil
	}
	return &s.policies[first], by
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

// terms are what a policy asks of an operation that it permits, where it does not
// matter which policy asks.
type terms struct {
	maxBytes, maxRows     int64
	maxDuration, cloneTTL time.Duration
	requireTLS, preview   bool
	undecided             string
}

func (p Policy) terms() terms {
	return terms{
		maxBytes: p.MaxBytes, maxRows: p.MaxRows, maxDuration: p.MaxDuration, cloneTTL: p.CloneTTL,
		requireTLS: p.RequireTLS, preview: p.Preview, undecided: p.undecided(),
	}
}

func (t *terms) add(d *wire.Decision, kind wire.Kind) {
	d.MaxBytes = stricter(d.MaxBytes, t.maxBytes)
	d.MaxRows = stricter(d.MaxRows, t.maxRows)
	d.MaxDuration = stricter(d.MaxDuration, t.maxDuration)
	d.RequireTLS = d.RequireTLS || t.requireTLS
	if d.UndecidedColumns != UndecidedStop && t.undecided != "" {
		d.UndecidedColumns = t.undecided
	}
	d.Preview = d.Preview && t.preview
	if kind == wire.KindClone {
		d.CloneTTL = stricter(d.CloneTTL, t.cloneTTL)
	}
}

// asks tells whether [Policy.ask] adds anything.
func (p Policy) asks() bool {
	return len(p.Agents) > 0 || len(p.AgentLabels) > 0 || p.Approvals != nil && p.Approvals.Count > 0 || p.Mask != ""
}

// ask adds what the policy asks for in its own name.
func (p *Policy) ask(d *wire.Decision) {
	if len(p.Agents) > 0 || len(p.AgentLabels) > 0 {
		d.Agents = append(d.Agents, wire.AgentNeed{Policy: p.Name, Names: p.Agents, Labels: p.AgentLabels})
	}
	if a := p.Approvals; a != nil && a.Count > 0 {
		d.Approvals = append(d.Approvals, wire.ApprovalNeed{Policy: p.Name, Count: a.Count, Groups: a.Groups, TTL: a.TTL})
	}
	if p.Mask != "" && !slices.Contains(d.Masks, p.Mask) {
		d.Masks = append(d.Masks, p.Mask)
	}
}

// stricter returns the smaller of two limits, of which 0 means none.
func stricter[T int64 | time.Duration](a, b T) T {
	if b <= 0 || (a > 0 && a < b) {
		return a
	}
	return b
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

// match finds the policies that speak about the request, and those that do so by
// the names that were asked for, not only by another name of the same database.
func (s *Set) match(e *evaluation) {
	s.speakTo(&e.r, e.matching, e.chosen)
	copy(e.asked, e.matching)
	for _, side := range [2]struct {
		index *sideIndex
		names []Connection
	}{{&s.source, e.r.Source}, {&s.target, e.r.Target}} {
		side.index.anyOf(side.names, e.matching, e.chosen, e.first, e.spare)
		e.matching.keep(e.chosen)
		e.asked.keep(e.first)
	}
}

// speakTo puts into who the policies that speak about who asks and the kind; what
// is memory it may use.
func (s *Set) speakTo(r *Request, who, what members) {
	s.about(r, who)
	s.aboutKind(r.Kind, what)
	who.keep(what)
}

// about puts into who the policies that name who asks.
func (s *Set) about(r *Request, who members) {
	copy(who, s.everybody)
	who.join(s.byEntity[r.Entity])
	for _, group := range r.Groups {
		who.join(s.byGroup[group])
	}
}

// aboutKind puts into what the policies that name the kind.
func (s *Set) aboutKind(kind wire.Kind, what members) {
	copy(what, s.everyKind)
	what.join(s.byKind[kind])
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

// end gives the memory back, with nothing of the request in it.
func (e *evaluation) end() {
	*e = evaluation{words: e.words}
	evaluations.Put(e)
}
