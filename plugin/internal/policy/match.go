package policy

import (
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// pattern is a glob taken apart once: an asterisk stands for any text, every
// other character for itself.
type pattern struct {
	first  string   // what the text begins with; all of it without an asterisk
	middle []string // what comes later in it, in this order
	last   string   // what it ends with
	glob   bool     // there is an asterisk
}

func parsePattern(glob string) pattern {
	pieces := strings.Split(glob, "*")
	p := pattern{first: pieces[0]}
	if len(pieces) == 1 {
		return p
	}
	p.glob, p.last = true, pieces[len(pieces)-1]
	for _, piece := range pieces[1 : len(pieces)-1] {
		if piece != "" {
			p.middle = append(p.middle, piece)
		}
	}
	return p
}

func (p *pattern) matches(text string) bool {
	if !p.glob {
		return text == p.first
	}
	if len(text) < len(p.first)+len(p.last) || !strings.HasPrefix(text, p.first) || !strings.HasSuffix(text, p.last) {
		return false
	}
	text = text[len(p.first) : len(text)-len(p.last)]
	for _, piece := range p.middle {
		at := strings.Index(text, piece)
		if at < 0 {
			return false
		}
		text = text[at+len(piece):]
	}
	return true
}

// sideIndex finds the policies of a set that select a connection as one side of an
// operation. Policies mostly share globs, so each is tried once on a connection.
type sideIndex struct {
	names  []sharedGlob // of connection names
	labels []labelGlobs
}

// sharedGlob is a glob of a set and the policies that have it.
type sharedGlob struct {
	pattern
	policies members
}

// labelGlobs are the globs that policies hold one label's value against.
type labelGlobs struct {
	key   string
	globs []sharedGlob
}

// indexSide reads one side of every policy.
func indexSide(policies []Policy, side func(*Policy) (names []string, labels map[string]string)) sideIndex {
	var x sideIndex
	share := func(globs []sharedGlob, known map[string]int, glob string, policy int) []sharedGlob {
		at, ok := known[glob]
		if !ok {
			at = len(globs)
			known[glob] = at
			globs = append(globs, sharedGlob{parsePattern(glob), newMembers(len(policies))})
		}
		globs[at].policies.add(policy)
		return globs
	}
	names, keys, values := map[string]int{}, map[string]int{}, map[string]map[string]int{}
	for i := range policies {
		globs, labels := side(&policies[i])
		for _, glob := range globs {
			x.names = share(x.names, names, glob, i)
		}
		for key, glob := range labels {
			at, ok := keys[key]
			if !ok {
				at = len(x.labels)
				keys[key], values[key] = at, map[string]int{}
				x.labels = append(x.labels, labelGlobs{key: key})
			}
			x.labels[at].globs = share(x.labels[at].globs, values[key], glob, i)
		}
	}
	return x
}

// named puts into chosen those among the policies whose globs match the name.
func (x *sideIndex) named(name string, among, chosen members) {
	clear(chosen)
	for i := range x.names {
		if g := &x.names[i]; g.policies.meet(among) && g.matches(name) {
			chosen.join(g.policies)
		}
	}
	chosen.keep(among)
}

// selected puts into chosen those among the policies that select the connection by
// name and labels. A label that it lacks counts as empty.
func (x *sideIndex) selected(c *Connection, among, chosen members) {
	x.named(c.Name, among, chosen)
	for i := range x.labels {
		value := c.Labels[x.labels[i].key]
		for j := range x.labels[i].globs {
			if g := &x.labels[i].globs[j]; g.policies.meet(chosen) && !g.matches(value) {
				chosen.drop(g.policies)
			}
		}
	}
}

// anyOf puts into chosen those among the policies that select any name of the
// side's database, and into asked those that select the first, which was asked for.
// An operation without that side is selected by all. Spare is memory it may use.
func (x *sideIndex) anyOf(names []Connection, among, chosen, asked, spare members) {
	if len(names) == 0 {
		copy(chosen, among)
		copy(asked, among)
		return
	}
	x.selected(&names[0], among, asked)
	copy(chosen, asked)
	for i := range names[1:] {
		x.selected(&names[1+i], among, spare)
		chosen.join(spare)
	}
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

// like matches one text once, outside of a set.
func like(glob, text string) bool {
	p := parsePattern(glob)
	return p.matches(text)
}

// selects tells whether a name and its labels are among those globs and labels
// select.
func selects(globs []string, wanted map[string]string, name string, labels map[string]string) bool {
	if !slices.ContainsFunc(globs, func(glob string) bool { return like(glob, name) }) {
		return false
	}
	for key, glob := range wanted {
		if value, ok := labels[key]; !ok || !like(glob, value) {
			return false
		}
	}
	return true
}

func matchesConnection(globs []string, labels map[string]string, c Connection) bool {
	return selects(globs, labels, c.Name, c.Labels)
}

func (p Policy) matchesKind(r Request) bool {
	return len(p.Operations) == 0 || slices.Contains(p.Operations, r.Kind)
}

// AgentMatches tells whether an agent satisfies what one policy asks of it.
func AgentMatches(need wire.AgentNeed, name string, labels map[string]string) bool {
	names := need.Names
	if len(names) == 0 {
		names = []string{"*"}
	}
	return selects(names, need.Labels, name, labels)
}
