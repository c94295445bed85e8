package auditlog

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Kind of a problem.
type Kind string

// The kinds of problems.
const (
	KindMissing   Kind = "missing"    // events between others are not there
	KindCut       Kind = "cut"        // events at the end, which Vault knows, are not there
	KindBegins    Kind = "begins"     // events at the beginning are not there
	KindAltered   Kind = "altered"    // an event does not fit its neighbour or Vault's word
	KindDiffers   Kind = "differs"    // two copies of one event, or of one chain, are not equal
	KindReordered Kind = "reordered"  // an event stands behind a later one
	KindForged    Kind = "forged"     // claims to be ours and is not
	KindHidden    Kind = "hidden"     // hashed by the device
	KindDamaged   Kind = "unreadable" // a line that mentions us cannot be read
)

// Problem is one finding against the files.
type Problem struct {
	Kind    Kind    `json:"kind"`
	Chain   string  `json:"chain,omitempty"` // agent's name, or "(facts)"
	From    string  `json:"from,omitempty"`  // first event concerned, epoch/seq
	To      string  `json:"to,omitempty"`    // last one
	Message string  `json:"message"`
	Places  []Place `json:"places,omitempty"`
}

// ChainFacts is what was found of one chain.
type ChainFacts struct {
	Chain  string `json:"chain"`
	First  string `json:"first"` // epoch/seq
	Last   string `json:"last"`
	Events int64  `json:"events"`
	Copies int64  `json:"copies"` // further entries with the same bytes
	// End is what Vault knows as the last event; Confirmed says that it stands in
	// the files with Vault's hash.
	End       string `json:"end,omitempty"`
	Confirmed bool   `json:"confirmed"`
}

// Report is the result of [Verify].
type Report struct {
	MountAccessor string       `json:"mount_accessor"`
	Files         []FileFacts  `json:"files"`
	Chains        []ChainFacts `json:"chains"`
	Problems      []Problem    `json:"problems"`
	// Unlisted is how many problems there are beyond those listed.
	Unlisted int64 `json:"unlisted,omitempty"`
	// NotCounted are entries that hold the key and are not ours, by standing: the
	// plugin refused them, or anybody wrote them elsewhere. They prove nothing and
	// harm nothing.
	NotCounted map[Standing]int64 `json:"not_counted"`
	// Examples has the first few of those.
	Examples []Example `json:"examples,omitempty"`
	Notes    []string  `json:"notes,omitempty"`
}

// Example is an entry that does not count.
type Example struct {
	Standing Standing `json:"standing"`
	Why      string   `json:"why"`
	Place    Place    `json:"place"`
}

// Intact reports whether there is no problem.
func (r Report) Intact() bool { return len(r.Problems) == 0 }

// VerifyOptions change what counts as a problem.
type VerifyOptions struct {
	// Partial lets chains begin in the middle, as they do when older files are gone.
	Partial bool
	// MaxProblems and MaxExamples bound the report; 1000 and 20 when 0.
	MaxProblems, MaxExamples int
}

// Further bounds of a verification.
const (
	maxChains  = 4096
	askedKept  = 512
	problemsIn = 1000
	examplesIn = 20
	// clocksDiffer is how far the clocks of Vault's nodes may be apart.
	clocksDiffer = time.Minute
)

// asked is a request whose answer was not read yet.
type asked struct {
	items []item // without texts
	place Place
}

// verifier is one run of [Verify].
type verifier struct {
	anchors Anchors
	options VerifyOptions
	report  Report
	chains  map[string]*chain
	// entities are those believed where Vault knows none yet, by agent.
	entities map[string]string
	asked    map[string]asked // by request id
	order    []string         // of asked, oldest first
}

// Verify reads files and holds them against what Vault knows. Without anchors each
// chain is checked in itself, and a cut end is not seen.
func Verify(ctx context.Context, anchors Anchors, inputs []Input, options VerifyOptions) (Report, error) {
	if options.MaxProblems == 0 {
		options.MaxProblems = problemsIn
	}
	if options.MaxExamples == 0 {
		options.MaxExamples = examplesIn
	}
	v := &verifier{
		anchors: anchors, options: options, chains: make(map[string]*chain), entities: make(map[string]string), asked: make(map[string]asked),
		report: Report{MountAccessor: anchors.MountAccessor, Problems: []Problem{}, NotCounted: map[Standing]int64{}},
	}
	files, err := read(ctx, inputs, v.damaged, v.take)
	if err != nil {
		return Report{}, err
	}
	v.report.Files = files
	v.finish()
	return v.report, nil
}

func (v *verifier) found(p Problem) {
	if p.Kind == KindBegins && v.options.Partial {
		v.report.Notes = append(v.report.Notes, p.Message)
		return
	}
	if len(v.report.Problems) >= v.options.MaxProblems {
		v.report.Unlisted++
		return
	}
	v.report.Problems = append(v.report.Problems, p)
}

func (v *verifier) damaged(d damage) {
	v.found(Problem{Kind: KindDamaged, Message: fmt.Sprintf("%s: %s", d.place, d.why), Places: []Place{d.place}})
}

// take judges one entry and follows its chain.
func (v *verifier) take(e *entry) {
	judged := judge(v.anchors, e)
	if judged.standing == Ours && judged.chain != factsChain {
		judged = v.believe(judged)
	}
	switch judged.standing {
	case Ours:
		v.follow(judged, e)
	case Asked:
		v.ask(e, judged.items)
	case Forged:
		v.found(Problem{Kind: KindForged, Chain: judged.chain, Message: fmt.Sprintf("%s: %s", e.place, judged.why), Places: []Place{e.place}})
	case Hidden:
		v.found(Problem{Kind: KindHidden, Chain: judged.chain, Message: fmt.Sprintf("%s: %s", e.place, judged.why), Places: []Place{e.place}})
	default:
		v.forget(e.Request.ID)
		v.report.NotCounted[judged.standing]++
		if len(v.report.Examples) < v.options.MaxExamples && e.Type == typeResponse {
			v.report.Examples = append(v.report.Examples, Example{judged.standing, judged.why, e.place})
		}
	}
}

// believe holds an agent to the entity it was first seen with, where Vault does not
// know it.
func (v *verifier) believe(judged verdict) verdict {
	if len(v.anchors.Agents[judged.chain].Entities) > 0 {
		return judged
	}
	first, known := v.entities[judged.chain]
	switch {
	case !known && len(v.entities) < maxChains:
		v.entities[judged.chain] = judged.entity
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("agent %s: its entity is not known from Vault; %s, the first found, was believed", judged.chain, judged.entity))
	case first != judged.entity:
		judged.standing = Forged
		judged.why = fmt.Sprintf("it came from entity %q, other events of agent %s from %q", judged.entity, judged.chain, first)
	}
	return judged
}

// chainOf returns the chain of that name.
func (v *verifier) chainOf(name string) *chain {
	if c := v.chains[name]; c != nil {
		return c
	}
	c := newChain(name, v.found)
	anchor := v.anchors.Agents[name].Chain
	if name == factsChain {
		anchor = v.anchors.Facts
	}
	if at, err := parsePosition(anchor.Epoch, anchor.Seq); err == nil {
		c.anchor, c.anchorSum = at, anchor.Head
		if name != factsChain && !v.anchors.At.IsZero() { // facts are read before they are acknowledged
			c.closed = v.anchors.At.Add(-clocksDiffer)
		}
	}
	v.chains[name] = c
	return c
}

func (v *verifier) follow(judged verdict, e *entry) {
	if v.chains[judged.chain] == nil && len(v.chains) >= maxChains {
		v.found(Problem{Kind: KindForged, Chain: judged.chain, Message: fmt.Sprintf("%s: more than %d agents", e.place, maxChains), Places: []Place{e.place}})
		return
	}
	c := v.chainOf(judged.chain)
	for _, it := range judged.items {
		c.take(it, e.place)
	}
	c.answered(judged.answered, e.place)
	if request, ok := v.asked[e.Request.ID]; ok {
		v.compareHalves(c, request, judged.items, e.place)
		v.forget(e.Request.ID)
	}
}

// compareHalves compares request and response of one entry: both hold the events.
func (v *verifier) compareHalves(c *chain, request asked, items []item, place Place) {
	if len(request.items) != len(items) { // those of the request: an altered answer may have none
		first, last := request.items[0].at, request.items[len(request.items)-1].at
		c.problem(KindDiffers, first, last, fmt.Sprintf("the request at %s and its answer at %s do not hold the same events", request.place, place), request.place, place)
		return
	}
	for i, it := range items {
		if it.hash != request.items[i].hash {
			c.problem(KindDiffers, it.at, it.at, fmt.Sprintf("event %s differs between the request at %s and its answer at %s: one of the two was altered", it.at, request.place, place), request.place, place)
		}
	}
}

// ask remembers a request until its answer.
func (v *verifier) ask(e *entry, items []item) {
	if len(items) == 0 || e.Request.ID == "" {
		return
	}
	if len(v.order) >= askedKept {
		delete(v.asked, v.order[0])
		v.order = v.order[1:]
	}
	for i := range items {
		items[i].text, items[i].event = "", nil
	}
	v.asked[e.Request.ID] = asked{items: items, place: e.place}
	v.order = append(v.order, e.Request.ID)
}

func (v *verifier) forget(id string) {
	if _, ok := v.asked[id]; ok {
		delete(v.asked, id)
		v.order = slices.DeleteFunc(v.order, func(other string) bool { return other == id })
	}
}

// finish closes the chains, those that no file mentions included.
func (v *verifier) finish() {
	for name, known := range v.anchors.Agents {
		if known.Head != "" {
			v.chainOf(name)
		}
	}
	if v.anchors.Facts.Head != "" {
		v.chainOf(factsChain)
	}
	for _, name := range slices.Sorted(maps.Keys(v.chains)) {
		c := v.chains[name]
		c.end(v.report.Files)
		facts := ChainFacts{Chain: name, Events: c.events, Copies: c.copies, Confirmed: c.confirmed}
		if c.started {
			facts.First, facts.Last = c.first.String(), c.last.at.String()
		}
		if c.anchorSum != "" {
			facts.End = c.anchor.String()
		}
		v.report.Chains = append(v.report.Chains, facts)
	}
	for id := range v.asked {
		v.unanswered(id)
	}
	slices.Sort(v.report.Notes)
}

// unanswered tells of a request without an answer: Vault ended in between, or the
// answer was removed, which shows as missing events unless it came again.
func (v *verifier) unanswered(id string) {
	request := v.asked[id]
	first, last := request.items[0].at, request.items[len(request.items)-1].at
	v.report.Notes = append(v.report.Notes, fmt.Sprintf("the request with events %s to %s at %s has no answer in the files", first, last, request.place))
}
