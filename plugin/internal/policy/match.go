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

// globs are the distinct patterns of a set. Policies mostly share them, so that
// each is tried once on each text of a request.
type globs struct {
	patterns []pattern
	ids      map[string]int
}

func (g *globs) id(glob string) int {
	id, known := g.ids[glob]
	if !known {
		id = len(g.patterns)
		g.ids[glob] = id
		g.patterns = append(g.patterns, parsePattern(glob))
	}
	return id
}

func (g *globs) all(texts []string) []int {
	ids := make([]int, len(texts))
	for i, text := range texts {
		ids[i] = g.id(text)
	}
	return ids
}

// labelGlob is one label that must have a value like the pattern.
type labelGlob struct {
	key  int // its place among the label keys of the set
	glob int
}

// labels reads the labels of a policy; keys are all of the set's, sorted.
func (g *globs) labels(labels map[string]string, keys []string) []labelGlob {
	all := make([]labelGlob, 0, len(labels))
	for key, glob := range labels {
		if at, ok := slices.BinarySearch(keys, key); ok {
			all = append(all, labelGlob{at, g.id(glob)})
		}
	}
	return all
}

// text is a name, or the value of a label, and what the patterns of a set said to
// it so far.
type text struct {
	text string
	said []verdict // by pattern
}

type verdict uint8

const (
	unasked verdict = iota
	matched
	unmatched
)

func (t *text) is(g *globs, glob int) bool {
	if said := t.said[glob]; said != unasked {
		return said == matched
	}
	return t.ask(g, glob)
}

func (t *text) ask(g *globs, glob int) bool {
	if g.patterns[glob].matches(t.text) {
		t.said[glob] = matched
		return true
	}
	t.said[glob] = unmatched
	return false
}

// name is one name of a database with its labels looked up: the value of each
// label key of the set.
type name struct {
	name   text
	values []text
}

// selector is what a policy selects on one side.
type selector struct {
	names  []int
	labels []labelGlob
}

// matches tells whether the side has a name that is selected, and whether the
// first one is. An operation without that side is selected.
func (s *selector) matches(g *globs, names []name) (matched, first bool) {
	if len(names) == 0 {
		return true, true
	}
	for i := range names {
		if s.named(g, &names[i].name) && s.labelled(g, names[i].values) {
			return true, i == 0
		}
	}
	return false, false
}

func (s *selector) named(g *globs, t *text) bool {
	for _, glob := range s.names {
		if t.is(g, glob) {
			return true
		}
	}
	return false
}

func (s *selector) labelled(g *globs, values []text) bool {
	for _, label := range s.labels {
		if !values[label.key].is(g, label.glob) {
			return false
		}
	}
	return true
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
