// Package policy decides whether an operation may happen. It is pure: the same
// policies, request and time give the same decision, and nothing is read or
// written.
//
// What it guarantees:
//   - Default deny. Without a policy that matches the request as it was asked,
//     the answer is no.
//   - Every policy that matches must allow. Among limits the strictest holds, and
//     is the one that a refusal names.
//   - So adding a policy to a set of which one matches never turns a refusal
//     into a permission.
//   - No entity, no operation, whatever a policy says.
//   - A label key that any policy mentions must be carried by both connections,
//     so that taking a label away does not evade a policy that selects by it.
package policy
