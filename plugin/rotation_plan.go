package plugin

import (
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/robfig/cron/v3"
)

// Limits of Vault's own engine.
const (
	shortestRotation = 5 * time.Second
	shortestWindow   = time.Hour
)

// rotationPlan says when a credential is rotated by itself: each period, by a
// schedule, or never when it has neither.
type rotationPlan struct {
	Period time.Duration `json:"rotation_period,omitzero"` // nanoseconds
	// Schedule has the five fields of cron, in UTC.
	Schedule string `json:"rotation_schedule,omitempty"`
	// Window is how long after its time a scheduled rotation may still be done;
	// 0 is without limit.
	Window time.Duration `json:"rotation_window,omitzero"`
}

// parseSchedule reads the five fields of cron.
func parseSchedule(text string) (cron.Schedule, error) {
	if strings.Contains(text, "TZ=") {
		return nil, invalidField("rotation_schedule", "is always in UTC and names no time zone")
	}
	schedule, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(text)
	if err != nil {
		return nil, invalidField("rotation_schedule", "is not a schedule of five fields such as \"0 3 * * SAT\"")
	}
	return schedule, nil
}

// merge applies the fields of a request. A period takes the place of a schedule
// and the other way round.
func (p *rotationPlan) merge(data *framework.FieldData) error {
	period, hasPeriod, err := durationGiven(data, "rotation_period")
	if err != nil {
		return err
	}
	schedule, hasSchedule := givenField[string](data, "rotation_schedule")
	window, hasWindow, err := durationGiven(data, "rotation_window")
	if err != nil {
		return err
	}
	hasPeriod = hasPeriod && (period != 0 || p.Period != 0)
	if hasPeriod && period != 0 && schedule != "" {
		return invalidField("rotation_period", "and rotation_schedule exclude each other")
	}
	if hasPeriod {
		p.Period = period
		if period != 0 {
			p.Schedule, p.Window = "", 0
		}
	}
	if hasSchedule {
		p.Schedule = schedule
		if schedule == "" {
			p.Window = 0
		} else {
			p.Period = 0
		}
	}
	if hasWindow {
		p.Window = window
	}
	return p.check()
}

func (p *rotationPlan) check() error {
	if p.Period != 0 && p.Period < shortestRotation {
		return invalidField("rotation_period", "must be %s or more", shortestRotation)
	}
	if p.Schedule != "" {
		schedule, err := parseSchedule(p.Schedule)
		if err != nil {
			return err
		}
		if schedule.Next(time.Unix(0, 0).UTC()).IsZero() {
			return invalidField("rotation_schedule", "names a date that never comes")
		}
	}
	switch {
	case p.Window == 0:
	case p.Schedule == "":
		return invalidField("rotation_window", "needs a rotation_schedule")
	case p.Window < shortestWindow:
		return invalidField("rotation_window", "must be %d seconds or more", int(shortestWindow.Seconds()))
	}
	return nil
}

// empty reports whether nothing is rotated by itself.
func (p *rotationPlan) empty() bool { return p.Period == 0 && p.Schedule == "" }

// next is the time of the rotation that follows one at after; zero is never.
func (p *rotationPlan) next(after time.Time) time.Time {
	switch {
	case p.Period > 0:
		return after.Add(p.Period)
	case p.Schedule != "":
		schedule, err := parseSchedule(p.Schedule)
		if err != nil {
			return time.Time{} // checked when it was stored
		}
		return schedule.Next(after.UTC())
	}
	return time.Time{}
}

// missed reports whether the window of a rotation that was due is over.
func (p *rotationPlan) missed(due, now time.Time) bool {
	return p.Window > 0 && now.After(due.Add(p.Window))
}

// interval is the period, or how far apart the rotation at due and the one after
// it are.
func (p *rotationPlan) interval(due time.Time) time.Duration {
	if p.Period > 0 || due.IsZero() {
		return p.Period
	}
	return p.next(due).Sub(due)
}
