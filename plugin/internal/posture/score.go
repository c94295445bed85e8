package posture

import (
	"cmp"
	"slices"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Score is 100 without findings. Each check that found something takes its points
// off once, on however many subjects: one weakness everywhere is one thing to
// mend. It never is below 0. A policy at the level minimum alone brings it to 40,
// the upper end of that level's band.
func Score(findings []wire.Finding) (score int, deductions []wire.Deduction) {
	byCheck := map[string]int{}
	for _, f := range findings {
		byCheck[f.ID]++
	}
	score, deductions = 100, []wire.Deduction{}
	for id, subjects := range byCheck {
		points := checkOf(id).points()
		if points == 0 {
			continue
		}
		score -= points
		deductions = append(deductions, wire.Deduction{ID: id, Points: points, Subjects: subjects})
	}
	slices.SortFunc(deductions, func(a, b wire.Deduction) int {
		return cmp.Or(cmp.Compare(b.Points, a.Points), cmp.Compare(a.ID, b.ID))
	})
	return max(score, 0), deductions
}

// Judge sorts findings, the worst first, and scores them.
func Judge(findings []wire.Finding) wire.Posture {
	findings = slices.Clone(findings)
	if findings == nil {
		findings = []wire.Finding{}
	}
	slices.SortStableFunc(findings, func(a, b wire.Finding) int {
		return cmp.Or(
			cmp.Compare(b.Severity.Rank(), a.Severity.Rank()), cmp.Compare(a.Subject.Kind, b.Subject.Kind),
			cmp.Compare(a.Subject.Name, b.Subject.Name), cmp.Compare(a.ID, b.ID),
		)
	})
	p := wire.Posture{Findings: findings, Looks: []wire.Look{}}
	p.Score, p.Deductions = Score(findings)
	return p
}
