// Coordinated Restore at Checkpoint, under the names at which Lambda's Java runtimes have it. The library org.crac finds
// these classes by the property `org.crac.Core.Compat`.
package com.amazonaws.services.lambda.crac;

/** What is to be told before a snapshot and after each restore from it. */
public interface Resource {
    void beforeCheckpoint(Context<? extends Resource> context) throws Exception;

    void afterRestore(Context<? extends Resource> context) throws Exception;
}
