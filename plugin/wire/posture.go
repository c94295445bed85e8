package wire

import "slices"

// Risk says how bad a finding of the posture is.
type Risk string

// The risks, from the least to the worst.
const (
	RiskInfo     Risk = "info" // something could not be checked
	RiskLow      Risk = "low"
	RiskMedium   Risk = "medium"
	RiskHigh     Risk = "high"
	RiskCritical Risk = "critical" // anybody on the network gets in, or nothing is recorded
)

// Risks lists every risk, from the least to the worst.
func Risks() []Risk { return []Risk{RiskInfo, RiskLow, RiskMedium, RiskHigh, RiskCritical} }

// Valid reports whether r is a known risk.
func (r Risk) Valid() bool { return r.Rank() >= 0 }

// Rank orders risks: 0 is the least. It is -1 for an unknown one.
func (r Risk) Rank() int {
	return slices.Index(Risks(), r)
}

// SubjectKind is what kind of thing a finding is about.
type SubjectKind string

// The kinds of subjects.
const (
	SubjectMount      SubjectKind = "mount"
	SubjectConnection SubjectKind = "connection"
	SubjectAgent      SubjectKind = "agent"
	SubjectPolicy     SubjectKind = "policy"
	SubjectStaticRole SubjectKind = "static_role"
)

// Subject is what a finding is about. The mount has no name.
type Subject struct {
	Kind SubjectKind `json:"kind"`
	Name string      `json:"name,omitempty"`
}

// String returns "<kind> <name>".
func (s Subject) String() string {
	if s.Name == "" {
		return string(s.Kind)
	}
	return string(s.Kind) + " " + s.Name
}

// Finding is one weakness that was seen, or one thing that could not be looked
// at. It holds names of users and objects, never a secret and never row data.
type Finding struct {
	ID       string  `json:"id"` // of the check; together with the subject it is unique
	Severity Risk    `json:"severity"`
	Subject  Subject `json:"subject"`
	Seen     string  `json:"seen"`
	Remedy   string  `json:"remedy"`
}

// Deduction is what one check takes off the score.
type Deduction struct {
	ID     string `json:"id"`
	Points int    `json:"points"`
	// Subjects is on how many things the check found something.
	Subjects int `json:"subjects"`
}

// Look is when a connection's server was looked at.
type Look struct {
	Connection string `json:"connection"`
	AgeSeconds int    `json:"age_seconds"`
}

// Posture is the answer of posture and posture/:connection.
type Posture struct {
	Score      int         `json:"score"` // 0 to 100
	Deductions []Deduction `json:"deductions"`
	Findings   []Finding   `json:"findings"` // the worst first
	Looks      []Look      `json:"looks"`
}
