package auditlog

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Bounds on what is remembered of one chain.
const (
	// recentKept is how many events back a copy is compared byte for byte. The
	// plugin answers nothing older than the last batch again.
	recentKept = 2048
	// gapsKept and fillsKept bound what waits for events that may follow later.
	gapsKept  = 256
	fillsKept = 8192
	// placesListed bounds the places of one finding.
	placesListed = 16
)

// seen is an event that was read, without its text.
type seen struct {
	at    position
	hash  string
	prev  string
	place Place
}

// trace is what is remembered of an event for copies of it.
type trace struct {
	at    position
	hash  string
	place Place
}

// gap is a run of sequence numbers that were passed over. What fills it later was
// out of place.
type gap struct {
	epoch    uint64
	from, to uint64
	before   seen // the zero value at the beginning of the chain
	after    seen
	fills    map[uint64]seen
	sameFile bool // some of it was found later in the file that passed it over
}

// chain follows one chain of events through the files. Its memory is bounded.
type chain struct {
	name  string
	found func(Problem)

	started bool
	first   position
	last    seen
	events  int64
	copies  int64
	recent  map[uint64]trace // by seq modulo recentKept
	gaps    []*gap
	fills   int

	anchor    position // the end as Vault knows it; zero: none
	anchorSum string
	confirmed bool // the event at anchor has Vault's hash
	// closed: an event that was answered before is not beyond the anchor; zero:
	// not known. beyond is the first that is all the same, beyondLast the last.
	closed             time.Time
	beyond, beyondLast *seen
}

func newChain(name string, found func(Problem)) *chain {
	return &chain{name: name, found: found, recent: make(map[uint64]trace)}
}

// subject is the chain in the words of a finding.
func (c *chain) subject() string {
	if c.name == factsChain {
		return "facts"
	}
	return "agent " + c.name
}

func (c *chain) problem(kind Kind, from, to position, message string, places ...Place) {
	c.found(Problem{Kind: kind, Chain: c.name, From: from.String(), To: to.String(), Message: c.subject() + ": " + message, Places: places})
}

// take follows the chain by one event. It says whether the event is new; a copy
// was compared and counted.
func (c *chain) take(it item, place Place) (fresh bool) {
	now := seen{at: it.at, hash: it.hash, prev: it.prev, place: place}
	if next := (position{c.last.at.epoch, c.last.at.seq + 1}); c.started && now.prev == c.last.hash && c.last.at.before(now.at) &&
		now.at != next && now.at != (position{c.last.at.epoch + 1, 1}) {
		c.problem(KindAltered, next, now.at, fmt.Sprintf("the event at %s calls itself %s and continues event %s at %s: it was altered", place, now.at, c.last.at, c.last.place), place)
		now.at = next
	}
	switch {
	case !c.started:
		c.started, c.first = true, it.at
		switch {
		case it.at.seq > 1: // what is before it may still follow
			c.open(gap{epoch: it.at.epoch, from: 1, to: it.at.seq - 1, after: now})
		case it.at.epoch == 1 && it.prev != "":
			c.problem(KindAltered, it.at, it.at, fmt.Sprintf("event %s is the first of all and names one before it", it.at), place)
		}
	case now.at.epoch == c.last.at.epoch && now.at.seq == c.last.at.seq+1:
		c.link(c.last, now)
	case now.at.epoch == c.last.at.epoch && now.at.seq > c.last.at.seq:
		c.open(gap{epoch: now.at.epoch, from: c.last.at.seq + 1, to: now.at.seq - 1, before: c.last, after: now})
	case now.at.epoch > c.last.at.epoch:
		c.nextEpoch(now)
	default:
		return c.again(now)
	}
	c.note(now)
	c.last = now
	return true
}

// note remembers an event and compares it with Vault's end of the chain.
func (c *chain) note(now seen) {
	c.events++
	c.recent[now.at.seq%recentKept] = trace{now.at, now.hash, now.place}
	if c.anchorSum != "" && c.anchor.before(now.at) && now.place.Time.Before(c.closed) {
		if c.beyond == nil {
			c.beyond = &now
		}
		c.beyondLast = &now
	}
	if c.anchorSum == "" || now.at != c.anchor {
		return
	}
	if now.hash == c.anchorSum {
		c.confirmed = true
		return
	}
	c.problem(KindAltered, now.at, now.at, fmt.Sprintf("event %s at %s is not the one that Vault knows as the end of the chain: it, or all up to it, was altered", now.at, now.place), now.place)
}

// link checks that b names a as the event before it.
func (c *chain) link(a, b seen) {
	if b.prev == a.hash {
		return
	}
	c.problem(KindAltered, a.at, b.at, fmt.Sprintf("event %s at %s does not continue event %s at %s: one of the two was altered", b.at, b.place, a.at, a.place), a.place, b.place)
}

// nextEpoch begins an epoch later than the last.
func (c *chain) nextEpoch(now seen) {
	switch {
	case now.at.epoch > c.last.at.epoch+1:
		c.problem(KindMissing, c.last.at, now.at, fmt.Sprintf("whole epochs are missing between event %s at %s and event %s at %s", c.last.at, c.last.place, now.at, now.place), c.last.place, now.place)
		return
	case now.at.seq > 1:
		c.problem(KindMissing, c.last.at, now.at, fmt.Sprintf("the end of epoch %d may be, and events %d/1 to %d/%d are missing, between %s and %s",
			c.last.at.epoch, now.at.epoch, now.at.epoch, now.at.seq-1, c.last.place, now.place), c.last.place, now.place)
		return
	case now.prev == c.last.hash:
		return
	}
	for _, old := range c.recent {
		if old.hash == now.prev && old.at.before(c.last.at) {
			c.problem(KindDiffers, old.at, now.at, fmt.Sprintf("epoch %d at %s begins after event %s, although events up to %s follow that one: Vault's storage was set back", now.at.epoch, now.place, old.at, c.last.at), old.place, now.place)
			return
		}
	}
	c.problem(KindMissing, c.last.at, now.at, fmt.Sprintf("epoch %d at %s does not begin after event %s at %s: the end of epoch %d is missing, or one of the two was altered",
		now.at.epoch, now.place, c.last.at, c.last.place, c.last.at.epoch), c.last.place, now.place)
}

// open notes that events were passed over.
func (c *chain) open(g gap) {
	if len(c.gaps) >= gapsKept {
		c.missing(c.gaps[0])
		c.fills -= len(c.gaps[0].fills)
		c.gaps = c.gaps[1:]
	}
	c.gaps = append(c.gaps, &g)
}

// again takes an event that is not beyond the last one: a copy, or one that stood
// out of place.
func (c *chain) again(now seen) (fresh bool) {
	if old := c.recent[now.at.seq%recentKept]; old.at == now.at {
		c.compare(old.hash, old.place, now)
		return false
	}
	for _, g := range c.gaps {
		if g.epoch != now.at.epoch || now.at.seq < g.from || now.at.seq > g.to {
			continue
		}
		if old, known := g.fills[now.at.seq]; known {
			c.compare(old.hash, old.place, now)
			return false
		}
		if c.fills >= fillsKept {
			break
		}
		if g.fills == nil {
			g.fills = make(map[uint64]seen)
		}
		g.fills[now.at.seq] = now
		c.fills++
		g.sameFile = g.sameFile || now.place.File == g.after.place.File
		c.note(now)
		if uint64(len(g.fills)) == g.to-g.from+1 {
			c.filled(g)
		}
		return true
	}
	c.problem(KindReordered, now.at, now.at, fmt.Sprintf("event %s stands at %s, long after event %s at %s", now.at, now.place, c.last.at, c.last.place), now.place)
	return false
}

func (c *chain) compare(hash string, place Place, now seen) {
	if hash == now.hash {
		c.copies++
		return
	}
	c.problem(KindDiffers, now.at, now.at, fmt.Sprintf("event %s stands at %s and, with another content, at %s", now.at, place, now.place), place, now.place)
}

// filled closes a gap whose events were all found later.
func (c *chain) filled(g *gap) {
	for i, other := range c.gaps {
		if other == g {
			c.gaps = append(c.gaps[:i:i], c.gaps[i+1:]...)
			break
		}
	}
	c.fills -= len(g.fills)
	before := g.before
	for seq := g.from; seq <= g.to; seq++ {
		now := g.fills[seq]
		if before.hash != "" {
			c.link(before, now)
		}
		before = now
	}
	c.link(before, g.after)
	c.outOfPlace(g)
}

// outOfPlace reports what a gap was filled with, unless other files hold it: their
// nodes' clocks need not agree.
func (c *chain) outOfPlace(g *gap) {
	if !g.sameFile {
		return
	}
	var places []Place
	seqs := slices.Sorted(maps.Keys(g.fills))
	for _, seq := range seqs {
		place := g.fills[seq].place
		if known := len(places); known == 0 || known < placesListed && places[known-1] != place {
			places = append(places, place)
		}
	}
	from, to := seqs[0], seqs[len(seqs)-1]
	c.problem(KindReordered, position{g.epoch, from}, position{g.epoch, to},
		fmt.Sprintf("%s: found at %s, after event %s at %s: entries were put in another order", span(g.epoch, from, to), places[0], g.after.at, g.after.place),
		append(places, g.after.place)...)
}

// missing reports the runs of a gap that nothing filled.
func (c *chain) missing(g *gap) {
	next := g.from
	for _, seq := range slices.Sorted(maps.Keys(g.fills)) {
		if seq > next {
			c.missingRun(g, next, seq-1)
		}
		next = seq + 1
	}
	if next <= g.to {
		c.missingRun(g, next, g.to)
	}
	if len(g.fills) > 0 {
		c.outOfPlace(g)
	}
}

func (c *chain) missingRun(g *gap, from, to uint64) {
	first, last, what := position{g.epoch, from}, position{g.epoch, to}, span(g.epoch, from, to)
	if g.before.hash == "" {
		c.problem(KindBegins, first, last, fmt.Sprintf("%s: the files begin after it, at %s", what, g.after.place), g.after.place)
		return
	}
	c.problem(KindMissing, first, last, fmt.Sprintf("%s: missing between event %s at %s and event %s at %s", what, g.before.at, g.before.place, g.after.at, g.after.place),
		g.before.place, g.after.place)
}

// end reports what is still missing, the end of the chain included. lastOf is where
// each file ends.
func (c *chain) end(files []FileFacts) {
	for _, g := range c.gaps {
		c.missing(g)
	}
	c.gaps = nil
	if c.beyond != nil {
		c.problem(KindForged, c.beyond.at, c.beyondLast.at, fmt.Sprintf(
			"events %s to %s follow the end that Vault knows, event %s, although Vault was asked after them: they were added to the file, or Vault's storage was set back",
			c.beyond.at, c.beyondLast.at, c.anchor), c.beyond.place, c.beyondLast.place)
	}
	if c.anchorSum == "" || c.confirmed || c.started && !c.last.at.before(c.anchor) {
		return
	}
	from, place := position{c.anchor.epoch, 1}, Place{}
	after := "none of its events is in the files"
	if c.started {
		place = c.last.place
		after = fmt.Sprintf("the last one in the files is event %s at %s", c.last.at, c.last.place)
		if c.last.at.epoch == c.anchor.epoch {
			from.seq = c.last.at.seq + 1
		}
	}
	what := span(c.anchor.epoch, from.seq, c.anchor.seq)
	if c.started && c.last.at.epoch < c.anchor.epoch {
		what += fmt.Sprintf(", and perhaps the end of epoch %d,", c.last.at.epoch)
	}
	ends := ""
	for _, f := range files {
		if f.Name == place.File && !f.Last.IsZero() {
			ends = fmt.Sprintf("; that file's last entry of ours is of %s", f.Last.UTC().Format("2006-01-02T15:04:05Z"))
		}
	}
	c.problem(KindCut, from, c.anchor, fmt.Sprintf("%s, which Vault has taken, are missing at the end: %s%s. The file was cut, or an older one was put in its place", what, after, ends), place)
}

// answered compares what Vault answered to a batch with the chain.
func (c *chain) answered(answer wire.Chain, place Place) {
	at, err := parsePosition(answer.Epoch, answer.Seq)
	if err != nil || answer.Head == "" {
		return // an answer whose keys the device hashed
	}
	known := c.recent[at.seq%recentKept]
	if known.at == at && known.hash != answer.Head {
		c.problem(KindDiffers, at, at, fmt.Sprintf("Vault answered another hash for event %s at %s than the event has at %s: it was altered", at, place, known.place), known.place, place)
	}
}
