package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a Vault host need not have it, and decisions must not depend on it
)

// day is the length of a day on a clock's face.
const day = 24 * 60 // minutes

// window is a part of the week on the face of a clock, in minutes of the day. It
// belongs to the weekdays it begins on and may end on the next one.
type window struct {
	days       [7]bool // by time.Weekday
	begin, end int     // end is above day when the window goes across midnight
}

// Hours are the windows of allowed_hours on the clock of one zone. They are read
// off the wall clock: an hour that a clock set back shows twice is in a window
// both times, one that it leaves out never comes.
type Hours struct {
	zone    *time.Location
	windows []window
}

func loadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if name == "Local" { // would be the server's, whatever that is
		return nil, fmt.Errorf("unknown time zone %s", name)
	}
	return time.LoadLocation(name)
}

var weekdays = map[string]time.Weekday{
	"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday,
	"thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday,
}

// ParseHours reads windows: "[<days> ]<begin>-<end>", where days is a weekday such
// as mon or a range such as fri-mon and every day when left out, and begin and end
// are HH:MM, up to 24:00. An end that is not after its begin is on the next day.
// It returns nil for no windows, which is always.
func ParseHours(texts []string, zone string) (*Hours, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	location, err := loadZone(zone)
	if err != nil {
		return nil, err
	}
	h := &Hours{zone: location}
	for _, text := range texts {
		w, err := parseWindow(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not like \"mon-fri 08:00-18:00\": %w", text, err)
		}
		h.windows = append(h.windows, w)
	}
	return h, nil
}

func parseWindow(text string) (window, error) {
	var w window
	fields := strings.Fields(strings.ToLower(text))
	switch len(fields) {
	case 1:
		w.days = [7]bool{true, true, true, true, true, true, true}
	case 2:
		from, to, isRange := strings.Cut(fields[0], "-")
		if !isRange {
			to = from
		}
		first, ok := weekdays[from]
		last, okToo := weekdays[to]
		if !ok || !okToo {
			return window{}, fmt.Errorf("%q names no weekdays", fields[0])
		}
		for d := first; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == last {
				break
			}
		}
	default:
		return window{}, fmt.Errorf("it has %d parts", len(fields))
	}
	begin, end, ok := strings.Cut(fields[len(fields)-1], "-")
	if !ok {
		return window{}, fmt.Errorf("%q has no begin and end", fields[len(fields)-1])
	}
	var err error
	if w.begin, err = parseClock(begin); err != nil {
		return window{}, err
	}
	if w.end, err = parseClock(end); err != nil {
		return window{}, err
	}
	switch {
	case w.begin == day:
		return window{}, fmt.Errorf("a window cannot begin at 24:00")
	case w.begin == w.end:
		return window{}, fmt.Errorf("it is empty; all day is 00:00-24:00")
	case w.end < w.begin:
		w.end += day
	}
	return w, nil
}

func parseClock(text string) (int, error) {
	if text == "24:00" {
		return day, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q is not HH:MM", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// face is what a clock shows.
type face struct {
	minute int // of the day
	today  time.Weekday
}

func faceOf(t time.Time, zone *time.Location) face {
	t = t.In(zone)
	return face{t.Hour()*60 + t.Minute(), t.Weekday()}
}

// Contain tells whether t is in a window.
func (h *Hours) Contain(t time.Time) bool { return h.contain(faceOf(t, h.zone)) }

func (h *Hours) contain(f face) bool {
	minute, today := f.minute, f.today
	yesterday := (today + 6) % 7
	for i := range h.windows {
		w := &h.windows[i]
		if w.days[today] && minute >= w.begin && minute < w.end {
			return true
		}
		if w.days[yesterday] && minute+day < w.end {
			return true
		}
	}
	return false
}

// misses is how often the hours of several policies may open without one another
// before that counts as never: those of a hostile one can do so each minute.
const misses = 100

// Opens returns the first time from t on at which the allowed_hours of every named
// policy let operations run; that is t where they do now. It is not ok when they
// never do within two weeks.
func (s *Set) Opens(names []string, t time.Time) (at time.Time, ok bool) {
	at = t
	for tries := 0; tries < misses && at.Sub(t) < 14*24*time.Hour; tries++ {
		next := at
		for i := range s.policies {
			p := &s.policies[i]
			if len(p.AllowedHours) == 0 || !slices.Contains(names, p.Name) {
				continue
			}
			if p.hours == nil { // nobody can read them any more
				return time.Time{}, false
			}
			if p.hours.Contain(at) {
				continue
			}
			opens := p.hours.Next(at)
			if opens.IsZero() {
				return time.Time{}, false
			}
			if opens.After(next) {
				next = opens
			}
		}
		if next.Equal(at) {
			return at, true
		}
		at = next
	}
	return time.Time{}, false
}

// WithHours returns those of the named policies that have allowed_hours, by name.
func (s *Set) WithHours(names []string) []string {
	var with []string
	for i := range s.policies {
		if p := &s.policies[i]; len(p.AllowedHours) > 0 && slices.Contains(names, p.Name) {
			with = append(with, p.Name)
		}
	}
	return with
}

// Next returns the first instant after t that is in a window, where t is in none.
// A window opens when the wall clock reaches its begin or is set into it.
func (h *Hours) Next(t time.Time) time.Time {
	var first time.Time
	try := func(at time.Time) {
		if at.After(t) && (first.IsZero() || at.Before(first)) && h.Contain(at) {
			first = at
		}
	}
	local := t.In(h.zone)
	year, month, date := local.Date()
	// The week, the day it began on, and one that a clock leaves out; but clocks are
	// set by a day at most, so that after one that was found it is soon over.
	for ahead, last := 0, 8; ahead <= last; ahead++ {
		for i := range h.windows {
			face := time.Date(year, month, date+ahead, 0, h.windows[i].begin, 0, 0, time.UTC)
			// The clock may be set around then: its face shows the begin twice, once
			// or never.
			for _, around := range []time.Duration{-day * time.Minute, day * time.Minute} {
				_, offset := face.Add(around).In(h.zone).Zone()
				try(face.Add(-time.Duration(offset) * time.Second))
			}
		}
		if last == 8 && !first.IsZero() {
			last = min(last, ahead+2)
		}
	}
	for at, until := local, local.AddDate(0, 0, 9); ; {
		_, end := at.ZoneBounds()
		if end.IsZero() || end.After(until) {
			return first
		}
		try(end)
		at = end
	}
}
